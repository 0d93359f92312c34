"""The two ways in which bytes come and go: a bare socket, and TLS over one.

A bare socket is driven without trio's socket objects: reading waits first and then reads, because after a response there is
nothing yet to read; writing tries first and waits only where the socket is full. That is one wait and two system calls a request.
"""

import socket
import ssl
from contextlib import suppress
from typing import Protocol

import trio

READ_BYTES = 65_536


class Transport(Protocol):
    """A connected stream. Methods raise OSError where the peer is gone; a closed one is never used again."""

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        ...

    async def receive(self) -> bytes:
        """Wait for bytes; none means that the peer has finished sending, or that `shut_down` was called."""
        ...

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what fits without waiting; how much that was."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Send all of it, waiting where need be."""
        ...

    def shut_down(self) -> None:
        """End whatever anyone waits for on this connection. May be called from any task."""
        ...

    def finish_sending(self) -> None:
        """Tell the peer that nothing more will come."""
        ...

    def close(self) -> None:
        """Free the socket."""
        ...


class SocketTransport:
    """A bare, non-blocking socket."""

    __slots__ = ("_socket",)
    scheme = "http"

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def receive(self) -> bytes:
        """See `Transport`."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue

    def send_now(self, data: bytes | memoryview) -> int:
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
        view = memoryview(data)
        while sent < len(data):
            await trio.lowlevel.wait_writable(self._socket)
            sent += self.send_now(view[sent:])

    def shut_down(self) -> None:
        """See `Transport`."""
        _shut(self._socket, socket.SHUT_RDWR)

    def finish_sending(self) -> None:
        """See `Transport`."""
        _shut(self._socket, socket.SHUT_WR)

    def close(self) -> None:
        """See `Transport`."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class TlsTransport:
    """TLS over a socket, by trio. Construct it with `accept`."""

    __slots__ = ("_raw", "_stream")
    scheme = "https"

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], raw: socket.socket) -> None:
        self._stream = stream
        self._raw = raw

    @classmethod
    def accept(cls, connected: socket.socket, context: ssl.SSLContext) -> "TlsTransport":
        """The server's side. The handshake happens at the first use, under the deadline of that use."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        return cls(trio.SSLStream(stream, context, server_side=True, https_compatible=True), connected)

    @classmethod
    async def connect(cls, connected: socket.socket, context: ssl.SSLContext, *, host: str) -> "TlsTransport":
        """The client's side, after the handshake; the certificate is checked for `host`. Raises OSError.

        The socket is closed where that fails or is cancelled.
        """
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        transport = cls(trio.SSLStream(stream, context, server_hostname=host, https_compatible=True), connected)
        try:
            await transport._stream.do_handshake()
        except trio.BrokenResourceError as error:
            transport.close()
            raise ConnectionResetError(f"the TLS handshake failed: {error.__cause__ or error}") from error
        except BaseException:
            transport.close()
            raise
        return transport

    async def receive(self) -> bytes:
        """See `Transport`."""
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except trio.BrokenResourceError as error:
            raise ConnectionResetError("the TLS connection broke") from error

    def send_now(self, data: bytes | memoryview) -> int:  # noqa: ARG002 - TLS cannot send a part of a record
        """See `Transport`: encrypted bytes always go through `send_all`."""
        return 0

    async def send_all(self, data: bytes) -> None:
        """See `Transport`."""
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise ConnectionResetError("the TLS connection broke") from error

    def shut_down(self) -> None:
        """See `Transport`."""
        _shut(self._raw, socket.SHUT_RDWR)

    def finish_sending(self) -> None:
        """See `Transport`."""
        _shut(self._raw, socket.SHUT_WR)

    def close(self) -> None:
        """See `Transport`."""
        self._stream.transport_stream.socket.close()


def _shut(connected: socket.socket, how: int) -> None:
    """Shut down one or both directions; a peer that has gone already is no error."""
    with suppress(OSError):
        connected.shutdown(how)


def server_tls(certificate: str, key: str) -> ssl.SSLContext:
    """A context for TLS 1.3 with HTTP/1.1. Raises OSError or ssl.SSLError where the files are not what they should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


def client_tls() -> ssl.SSLContext:
    """A context that trusts what the system trusts, and checks names."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
