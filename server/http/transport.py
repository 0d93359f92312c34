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

    @property
    def ended_cleanly(self) -> bool:
        """Once nothing more comes: whether the peer meant to end here. Only TLS can tell that it did not."""
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

    def is_quiet(self) -> bool:
        """Whether the peer has neither said anything that was not received yet, nor gone."""
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
    ended_cleanly = True

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

    def receive_now(self) -> bytes | None:
        """What is there, without waiting; None for nothing, no bytes for the end."""
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None

    def is_quiet(self) -> bool:
        """See `Transport`."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

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
    """TLS over a socket, in memory (`ssl.SSLObject`), so that nothing that the peer has said can hide from `is_quiet`.

    The server's handshake happens at the first use, under the deadline of that use; the client's in `connect`.
    """

    __slots__ = ("_incoming", "_outgoing", "_sending", "_socket", "_tls", "ended_cleanly")
    scheme = "https"

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, *, host: str | None = None) -> None:
        """`host` is the name that a client expects the certificate to be for; a server has none."""
        self._socket = SocketTransport(connected)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._sending = trio.Lock()
        self.ended_cleanly = False

    @classmethod
    async def connect(cls, connected: socket.socket, context: ssl.SSLContext, *, host: str) -> "TlsTransport":
        """The client's side, after the handshake; the certificate is checked for `host`. Raises OSError.

        The socket is closed where that fails or is cancelled.
        """
        try:
            transport = cls(connected, context, host=host)
            while not transport._shake_hands():
                await transport._send_encrypted()
                await transport._receive_encrypted()
            await transport._send_encrypted()
        except BaseException:
            SocketTransport(connected).close()
            raise
        return transport

    async def receive(self) -> bytes:
        """See `Transport`."""
        failure: ssl.SSLError | None = None
        while failure is None:
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLEOFError:
                return b""  # the connection ended without a farewell: somebody may have cut it short
            except ssl.SSLError as error:
                failure = error
            else:
                self.ended_cleanly = not data
                return data
            await self._send_encrypted()  # our part of the handshake, or the alert that says why
            if failure is None:
                await self._receive_encrypted()
        raise failure

    def send_now(self, data: bytes | memoryview) -> int:  # noqa: ARG002 - a record that is sent in part cannot be taken back
        """See `Transport`: encrypted bytes always go through `send_all`."""
        return 0

    async def send_all(self, data: bytes) -> None:
        """See `Transport`."""
        if data:
            self._tls.write(data)  # after the handshake, which reading has brought about
        await self._send_encrypted()

    def is_quiet(self) -> bool:
        """See `Transport`. What TLS itself has said meanwhile, such as a session ticket, is taken in."""
        try:
            encrypted = self._socket.receive_now()
            if encrypted != b"":
                self._incoming.write(encrypted or b"")
                self._tls.read(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            pass
        return False

    def shut_down(self) -> None:
        """See `Transport`."""
        self._socket.shut_down()

    def finish_sending(self) -> None:
        """See `Transport`."""
        self._socket.finish_sending()

    def close(self) -> None:
        """See `Transport`."""
        self._socket.close()

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def _receive_encrypted(self) -> None:
        encrypted = await self._socket.receive()
        if encrypted:
            self._incoming.write(encrypted)
        else:
            self._incoming.write_eof()

    async def _send_encrypted(self) -> None:
        """Send what TLS has to say, one task after the other, for the order of records matters."""
        if not self._outgoing.pending:
            return
        async with self._sending:
            await self._socket.send_all(self._outgoing.read())


def _shut(connected: socket.socket, how: int) -> None:
    """Shut down one or both directions; a peer that has gone already is no error."""
    with suppress(OSError):
        connected.shutdown(how)


def server_tls(certificate: str, key: str) -> ssl.SSLContext:
    """A context for TLS 1.3 with HTTP/1.1. Raises OSError that says which file is not what it should be, and why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    for path in (certificate, key):
        with open(path, "rb") as file:
            if b"-----BEGIN" not in file.read():
                raise OSError(f"{path} is not in PEM format")
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except ssl.SSLError as error:
        raise OSError(f"{key} is not the key of the certificate in {certificate} ({error.reason or error})") from error
    return context


def _refuse_to_ask() -> str:
    raise OSError("the key is encrypted: a server that starts by itself needs one that is not")


def client_tls() -> ssl.SSLContext:
    """A context that trusts what the system trusts, and checks names."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
