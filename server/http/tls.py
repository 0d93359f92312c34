"""TLS over a socket, and its contexts."""

import socket
import ssl
from contextlib import suppress
from functools import cache

import trio

from server.http.transport import READ_BYTES, SocketTransport

RECORD_BYTES = 16_384
"""The largest TLS record."""


class TlsTransport:
    """TLS over a socket, in memory (`ssl.SSLObject`), so that nothing that the peer has sent can hide from `is_quiet`.

    One task may receive while another sends; receiving never waits for a peer that does not read.
    """

    __slots__ = (
        "_encrypted",
        "_incoming",
        "_outgoing",
        "_sending",
        "_sent_bytes",
        "_sent_close_notify",
        "_socket",
        "_tls",
        "ended_cleanly",
    )
    scheme = "https"

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, *, host: str | None = None) -> None:
        """`host` is the name that a client expects in the certificate; a server has none."""
        self._socket = SocketTransport(connected)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._encrypted = b""
        self._sent_bytes = 0
        self._sending = trio.Lock()
        self._sent_close_notify = False
        self.ended_cleanly = False

    @classmethod
    async def connect(cls, connected: socket.socket, context: ssl.SSLContext, *, host: str) -> "TlsTransport":
        """The client's side, after the handshake; the certificate is checked for `host`. Raises OSError.

        The socket is closed on failure and on cancellation.
        """
        try:
            transport = cls(connected, context, host=host)
            await transport.begin()
        except BaseException:
            SocketTransport(connected).close()
            raise
        return transport

    async def begin(self) -> None:
        """See `Transport`."""
        failure: ssl.SSLError | None = None
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_all(b"")
                await self._receive_encrypted()
            except ssl.SSLError as error:
                failure = error
                break
            else:
                break
        await self.send_all(b"")  # the last part of our handshake, or the alert that says why it failed
        if failure is not None:
            raise failure

    async def receive(self) -> bytes:
        """See `Transport`. After our close_notify, input is not decrypted."""
        while not self._sent_close_notify:
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                self._push_if_free()
                await self._receive_encrypted()
            except ssl.SSLEOFError:
                return b""  # the connection ended without close_notify: somebody may have cut it
            except ssl.SSLError:
                self._push_if_free()  # the alert that says why
                raise
            else:
                # If OpenSSL is told to ignore a missing close_notify, the end of the stream looks like one.
                self.ended_cleanly = not data and not self._incoming.eof
                return data
        return await self._socket.receive()

    @property
    def has_unsent(self) -> bool:
        """See `Transport`."""
        return bool(self._encrypted or self._outgoing.pending)

    def send_now(self, data: bytes) -> int:
        """See `Transport`. One record after another, because a record that was sent in part cannot be taken back.

        Raises OSError only if nothing at all was sent: later failures are raised by `send_all`.
        """
        sent, left_before = 0, self._sent_bytes
        try:
            while sent < len(data) and not self._sending.locked() and self._push():
                sent += self._tls.write(data[sent : sent + RECORD_BYTES])
            if not self._sending.locked():
                self._push()
        except OSError:
            if self._sent_bytes == left_before:
                raise
        return sent

    async def send_all(self, data: bytes) -> None:
        """See `Transport`."""
        async with self._sending:
            for at in range(0, max(len(data), 1), RECORD_BYTES):
                if data:
                    self._tls.write(data[at : at + RECORD_BYTES])
                while not self._push():
                    await self._socket.until_writable()

    def is_quiet(self) -> bool:
        """See `Transport`. Messages of TLS itself, such as session tickets, are consumed."""
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

    def is_gone(self) -> bool:
        """See `Transport`."""
        return self._socket.is_gone()

    def shut_down(self) -> None:
        """See `Transport`."""
        self._socket.shut_down()

    async def finish_sending(self) -> None:
        """See `Transport`. Sends close_notify, so that the peer can tell that nothing was cut off."""
        if not self._sent_close_notify:
            self._sent_close_notify = True
            with suppress(OSError):
                self._tls.unwrap()
            with suppress(OSError):
                await self.send_all(b"")
        await self._socket.finish_sending()

    def close(self) -> None:
        """See `Transport`."""
        self._socket.close()

    def _push(self) -> bool:
        """Send encrypted bytes as far as they fit. Returns whether all were sent."""
        self._encrypted += self._outgoing.read()
        if self._encrypted:
            sent = self._socket.send_now(self._encrypted)
            self._sent_bytes += sent
            self._encrypted = self._encrypted[sent:]
        return not self._encrypted

    def _push_if_free(self) -> None:
        """Send TLS's own messages unless somebody else is sending; then, or if the peer is gone, they can wait."""
        if not self._sending.locked():
            with suppress(OSError):
                self._push()

    async def _receive_encrypted(self) -> None:
        encrypted = await self._socket.receive()
        if encrypted:
            self._incoming.write(encrypted)
        else:
            self._incoming.write_eof()


def server_tls(certificate: str, key: str) -> ssl.SSLContext:
    """A context for TLS 1.3 with HTTP/1.1. Raises OSError that names the faulty file and the reason."""
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
    raise OSError("the key is encrypted: a server needs one without a passphrase")


@cache
def client_tls() -> ssl.SSLContext:
    """A context that trusts the system's certificates, and checks names. All clients share it: reading them takes 20 ms."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
