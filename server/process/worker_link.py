"""The link between the supervisor and a worker: a pair of sockets that carry lines.

A worker says `ready` when requests can come, then `alive` once a second from its event loop, and `ending` when it has been told
to end. The supervisor says `adopt N` when the socket of slot N has no worker that accepts, and `release N` when it has one
again. Neither side ever waits for the other: a line that does not fit into the buffer is dropped, and a worker whose lines stop
is stuck.
"""

import socket
from collections.abc import Callable
from contextlib import suppress

import trio

ALIVE_SECONDS = 1.0
LINE_BYTES_MAX = 64


class Link:
    """One end. `close` must be called at last."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._socket = end
        self._unread = b""

    def tell(self, line: str) -> None:
        """Send a line, if there is room for it."""
        with suppress(OSError):  # the buffer is full or the other end is gone, which is noticed elsewhere
            self._socket.send(line.encode() + b"\n")

    async def hear(self) -> str | None:
        """Wait for the next line. Returns None at the end."""
        while b"\n" not in self._unread:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                part = self._socket.recv(4_096)
            except BlockingIOError:
                continue
            except OSError:
                part = b""
            if not part or len(self._unread) > LINE_BYTES_MAX:
                return None
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode("ascii", "replace")

    async def keep_telling(self) -> None:
        """Say that the event loop runs, until canceled."""
        while True:
            self.tell("alive")
            await trio.sleep(ALIVE_SECONDS)

    async def obey(self, adopt: Callable[[int], None], release: Callable[[int], None]) -> None:
        """Carry out what the supervisor says, until it has gone."""
        while (line := await self.hear()) is not None:
            word, _, number = line.partition(" ")
            if word == "adopt":
                adopt(int(number))
            elif word == "release":
                release(int(number))

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def pair() -> tuple[Link, socket.socket]:
    """The supervisor's end, and the worker's as a socket to pass on."""
    ours, theirs = socket.socketpair()
    return Link(ours), theirs
