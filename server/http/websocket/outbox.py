"""Data that a peer has not taken yet, in order.

Writing tries at once and never waits; a task, started only if the socket is full, sends the rest. The reaper ends a connection
whose peer takes nothing for `WRITE_SECONDS`. The owner limits the waiting data by `waiting_bytes`.
"""

import math
from collections import deque

import trio

from server.http.reaper import Reaper
from server.http.transport import Transport

WRITE_SECONDS = 20.0
_PART_BYTES = 262_144


class Outbox:
    """The outgoing side of one connection. The nursery is the owner's, and outlives it."""

    __slots__ = ("_all_sent", "_nursery", "_reaper", "_transport", "_unsent", "deadline", "is_lost", "waiting_bytes")

    def __init__(self, transport: Transport, reaper: Reaper, nursery: trio.Nursery) -> None:
        self._transport = transport
        self._reaper = reaper
        self._nursery = nursery
        self._unsent: deque[bytes] = deque()
        self._all_sent: trio.Event | None = None
        self.waiting_bytes = 0
        self.is_lost = False
        self.deadline = math.inf

    def write(self, data: bytes) -> None:
        """Send what fits now, and the rest as the peer takes it. Does nothing if the connection is lost."""
        if self.is_lost:
            return
        if not self._unsent:
            try:
                sent = self._transport.send_now(data)
            except OSError:
                self.lose()
                return
            if sent == len(data) and not self._transport.has_unsent:
                return
            data = data[sent:]
            self._all_sent = trio.Event()
            self.deadline = self._reaper.now + WRITE_SECONDS
            self._reaper.watched.add(self)
            self._nursery.start_soon(self._send_rest)
        self._unsent.append(data)
        self.waiting_bytes += len(data)

    async def until_empty(self) -> None:
        """Wait until the peer has taken everything, or is lost."""
        while self._all_sent is not None:
            await self._all_sent.wait()

    def drop_what_waits(self) -> None:
        """Drop all but the piece that may have been sent in part."""
        while len(self._unsent) > 1:
            self.waiting_bytes -= len(self._unsent.pop())

    def lose(self) -> None:
        """Mark the connection as lost: nothing more can be sent, and nobody needs to wait."""
        self.is_lost = True
        self._unsent.clear()
        self.waiting_bytes = 0
        self._finish()

    def expire(self) -> None:
        """Called by the reaper when the peer takes nothing."""
        self.lose()
        self._transport.shut_down()

    async def _send_rest(self) -> None:
        try:
            while self._unsent:
                piece = self._unsent[0]
                for at in range(0, max(len(piece), 1), _PART_BYTES):
                    await self._transport.send_all(piece[at : at + _PART_BYTES])
                    self.deadline = self._reaper.now + WRITE_SECONDS
                if not self.is_lost:
                    self.waiting_bytes -= len(self._unsent.popleft())
        except OSError:
            self.lose()
        self._finish()

    def _finish(self) -> None:
        self._reaper.watched.discard(self)
        if self._all_sent is not None:
            self._all_sent.set()
            self._all_sent = None
