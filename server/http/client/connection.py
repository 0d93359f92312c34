"""One connection of the HTTP client: in use by one call, or idle in its pool, or closed.

Invariants: it becomes idle only after its response was read to the end; whatever ends a call early, cancellation included, closes
it. Deadlines are an attribute that the reaper checks, not cancel scopes, which keeps a call cheap.
"""

from collections import deque
from dataclasses import dataclass

import trio

from server.http.client.errors import NotSent, OutcomeUnknown
from server.http.client.response import Response, ResponseParser
from server.http.reaper import Reaper
from server.http.transport import Transport

WRITTEN_PART_BYTES = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The time limits of the parts of a call; see `ClientOptions`."""

    write_seconds: float
    header_seconds: float
    idle_seconds: float


class ClientConnection:
    """Deadlines are in seconds on trio's clock; the reaper ends an overdue call at most one tick late."""

    __slots__ = ("_idle_connections", "_is_idle", "_parser", "_reaper", "_times", "_transport", "deadline", "expired")

    def __init__(
        self,
        transport: Transport,
        reaper: Reaper,
        idle_connections: "deque[ClientConnection]",
        times: Times,
        parser: ResponseParser,
    ) -> None:
        self._transport = transport
        self._reaper = reaper
        self._idle_connections = idle_connections
        self._times = times
        self._parser = parser
        self._is_idle = False
        self.deadline = float("inf")
        self.expired = False
        reaper.watch(self)

    @property
    def heard(self) -> bool:
        """True if any byte of the current response has arrived."""
        return self._parser.heard

    def take(self) -> bool:
        """Take it out of the pool. Returns False, and closes it, if the peer has left or sent data unasked."""
        self._is_idle = False
        self.deadline = float("inf")
        if not self._transport.is_quiet():
            self.close()
            return False
        return True

    async def exchange(self, data: bytes, *, bodiless: bool, ends_at: float) -> Response:
        """Exchange one request and its response. The connection returns to its pool if it can, and is closed otherwise.

        Raises `NotSent` if the first byte could not be sent, `OutcomeUnknown` or `BadResponse`.
        """
        transport, parser, times = self._transport, self._parser, self._times
        self.deadline = min(self._reaper.now + times.header_seconds, ends_at)
        parser.expect(bodiless=bodiless)
        reusable = False
        try:
            sent = self._send_now(data)
            was_taken = (sent == len(data) and not transport.has_unsent) or await self._send_rest(data[sent:], ends_at)
            while not parser.complete:
                received = await transport.receive()
                if self.expired or not received:
                    self._require_whole_body()
                    break
                parser.feed(received)
                if parser.head_complete:
                    self.deadline = ends_at
            reusable = was_taken and parser.keep_alive and not self.expired
            return parser.response()
        except OSError as error:
            raise OutcomeUnknown(self._why(f"the connection broke before the response ended: {error}")) from error
        finally:
            if reusable:
                self.deadline = self._reaper.now + times.idle_seconds
                self._is_idle = True
                self._idle_connections.append(self)
            else:
                self.close()

    def _send_now(self, data: bytes) -> int:
        try:
            return self._transport.send_now(data)
        except OSError as error:
            raise NotSent(f"the connection broke before anything was sent: {error}") from error

    async def _send_rest(self, data: bytes, ends_at: float) -> bool:
        """Send the rest of a request. Returns False if the peer stops reading, because it may have said why."""
        times = self._times
        try:
            for at in range(0, max(len(data), 1), WRITTEN_PART_BYTES):
                self.deadline = min(trio.current_time() + times.write_seconds, ends_at)
                await self._transport.send_all(data[at : at + WRITTEN_PART_BYTES])
        except OSError:
            return False
        self.deadline = min(trio.current_time() + times.header_seconds, ends_at)
        return True

    def _require_whole_body(self) -> None:
        """Handle the end of the stream, which may be how the body ends. Raises `OutcomeUnknown` otherwise."""
        if self.expired or not self._parser.ends_with_the_stream or not self._transport.ended_cleanly:
            raise OutcomeUnknown(self._why("the peer closed the connection before the response ended"))

    def _why(self, otherwise: str) -> str:
        return "the peer took too long to answer" if self.expired else otherwise

    def expire(self) -> None:
        """End the call, or close an idle connection; called by the reaper, and when the client closes."""
        self.expired = True
        if self._is_idle:
            self._idle_connections.remove(self)
            self.close()
        else:
            self._transport.shut_down()

    def close(self) -> None:
        """Close at once, without a TLS close or a shutdown."""
        self._reaper.watched.discard(self)
        self._transport.close()
