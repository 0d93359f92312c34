"""The interface of a connected stream, and a bare socket. `server.http.tls` is the other implementation.

A bare socket is driven without trio's socket objects: reading waits first and then reads, because after a response there is
nothing to read yet; writing tries first and waits only if the socket is full. That is one wait and two system calls per request.
"""

import select
import socket
from contextlib import suppress
from typing import Any, Protocol

import trio

READ_BYTES = 65_536


class Transport(Protocol):
    """A connected stream. Methods raise OSError if the peer is gone; a closed stream is never used again."""

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        ...

    @property
    def ended_cleanly(self) -> bool:
        """After the end of input: whether the peer meant to end here. Only TLS can tell that it did not."""
        ...

    async def receive(self) -> bytes:
        """Wait for bytes. Empty bytes mean that the peer has finished sending, or that `shut_down` was called."""
        ...

    @property
    def has_unsent(self) -> bool:
        """True if bytes of an earlier send still wait here, for `send_all` to send first."""
        ...

    async def begin(self) -> None:
        """Prepare an accepted connection: over TLS, the handshake."""
        ...

    def send_now(self, data: bytes) -> int:
        """Send what fits without waiting. Returns the number of bytes."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Send everything, waiting if necessary."""
        ...

    def is_quiet(self) -> bool:
        """Return whether the peer has neither sent unread data nor left."""
        ...

    def is_gone(self) -> bool:
        """Return whether the peer has finished sending, even if some of it is still unread."""
        ...

    def shut_down(self) -> None:
        """End every wait on this connection. May be called from any task."""
        ...

    async def finish_sending(self) -> None:
        """Tell the peer that nothing more will come, once all is sent. A peer that has left is not an error."""
        ...

    def close(self) -> None:
        """Free the socket."""
        ...


class SocketTransport:
    """A bare, non-blocking socket."""

    __slots__ = ("_poll", "_socket")
    scheme = "http"
    ended_cleanly = True
    has_unsent = False

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._poll: Any = None  # made when first needed, which is only in clients

    async def receive(self) -> bytes:
        """See `Transport`."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue

    async def begin(self) -> None:
        """See `Transport`."""

    def receive_now(self) -> bytes | None:
        """Read without waiting: None for nothing, no bytes for the end."""
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None

    def is_quiet(self) -> bool:
        """See `Transport`."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN | select.POLLHUP | select.POLLERR)
        return not self._poll.poll(0)

    def send_now(self, data: bytes) -> int:
        """See `Transport`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    async def send_all(self, data: bytes) -> None:
        """See `Transport`."""
        sent = self.send_now(data)
        if sent == len(data):
            return
        while sent < len(data):
            await trio.lowlevel.wait_writable(self._socket)
            sent += self.send_now(data[sent:])

    def is_gone(self) -> bool:
        """See `Transport`."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    async def until_writable(self) -> None:
        """Wait until the socket takes more."""
        await trio.lowlevel.wait_writable(self._socket)

    def shut_down(self) -> None:
        """See `Transport`."""
        _shut(self._socket, socket.SHUT_RDWR)

    async def finish_sending(self) -> None:
        """See `Transport`."""
        _shut(self._socket, socket.SHUT_WR)

    def close(self) -> None:
        """See `Transport`."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _shut(connected: socket.socket, how: int) -> None:
    """Shut down one or both directions. A peer that has left is not an error."""
    with suppress(OSError):
        connected.shutdown(how)
