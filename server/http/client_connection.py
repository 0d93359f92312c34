"""One connection of the HTTP client: in use by one call, or idle in its pool, or closed.

Invariants: it is idle only after its response was read to the end; whatever ends a call early, cancellation included, closes it.
Deadlines are an attribute that the reaper looks at and not cancel scopes, so that a call costs little.
"""

from collections import deque

import trio

from server.http.errors import NotSent, OutcomeUnknown
from server.http.reaper import Reaper
from server.http.response import Response, ResponseParser
from server.http.transport import Transport

WRITTEN_PART_BYTES = 262_144


class ClientConnection:
    """Deadlines are in seconds on trio's clock; the reaper ends what is overdue, at most its tick too late."""

    __slots__ = ("_idle_connections", "_is_idle", "_parser", "_reaper", "_transport", "deadline", "expired")

    def __init__(
        self, transport: Transport, reaper: Reaper, idle_connections: "deque[ClientConnection]", *, response_bytes_max: int
    ) -> None:
        self._transport = transport
        self._reaper = reaper
        self._idle_connections = idle_connections
        self._parser = ResponseParser(bytes_max=response_bytes_max)
        self._is_idle = False
        self.deadline = float("inf")
        self.expired = False
        reaper.watched.add(self)

    @property
    def heard(self) -> bool:
        """Whether any byte of the current response has come."""
        return self._parser.heard

    def take(self) -> bool:
        """Take it out of the pool; False, and closed, where the peer has gone or said what nobody asked for."""
        self._is_idle = False
        self.deadline = float("inf")
        if not self._transport.is_quiet():
            self.close()
            return False
        return True

    async def exchange(
        self,
        data: bytes,
        *,
        bodiless: bool,
        write_seconds: float,
        header_seconds: float,
        total_seconds: float,
        idle_seconds: float,
    ) -> Response:
        """One request and its response. The connection returns to its pool if it can, and is closed if not.

        Raises `NotSent` where the very first byte could not be sent, `OutcomeUnknown` or `BadResponse`.
        """
        parser = self._parser
        parser.expect(bodiless=bodiless)
        ends_at = trio.current_time() + total_seconds
        reusable = False
        try:
            was_taken = await self._send(data, ends_at, write_seconds)
            self.deadline = min(trio.current_time() + header_seconds, ends_at)
            await self._receive(ends_at)
            reusable = was_taken and parser.keep_alive and not self.expired
            return parser.response()
        except OSError as error:
            raise OutcomeUnknown(self._why(f"the connection broke before the response ended: {error}")) from error
        finally:
            if reusable:
                self.deadline = trio.current_time() + idle_seconds
                self._is_idle = True
                self._idle_connections.append(self)
            else:
                self.close()

    async def _send(self, data: bytes, ends_at: float, write_seconds: float) -> bool:
        """Send the request; False where the peer stops taking it, for it may have said why."""
        try:
            sent = self._transport.send_now(data)
        except OSError as error:
            raise NotSent(f"the connection broke before anything was sent: {error}") from error
        try:
            while sent < len(data) or self._transport.has_unsent:
                self.deadline = min(trio.current_time() + write_seconds, ends_at)
                part = data[sent : sent + WRITTEN_PART_BYTES]
                await self._transport.send_all(part)
                sent += len(part)
        except OSError:
            return False
        return True

    async def _receive(self, ends_at: float) -> None:
        parser = self._parser
        while not parser.complete:
            received = await self._transport.receive()
            if self.expired or not received:
                if self.expired or not parser.ends_with_the_stream or not self._transport.ended_cleanly:
                    raise OutcomeUnknown(self._why("the peer closed the connection before the response ended"))
                return
            parser.feed(received)
            if parser.head_complete:
                self.deadline = ends_at

    def _why(self, otherwise: str) -> str:
        return "the peer took too long to answer" if self.expired else otherwise

    def expire(self) -> None:
        """Called by the reaper, and when the client closes: end the call, or close what nobody has needed for a while."""
        self.expired = True
        if self._is_idle:
            self._idle_connections.remove(self)
            self.close()
        else:
            self._transport.shut_down()

    def close(self) -> None:
        """Close at once, without a farewell."""
        self._reaper.watched.discard(self)
        self._transport.close()
