"""An HTTP/1.1 client on bare trio: a keep-alive pool per origin, llhttp for the responses.

Its errors say what is known (`server.http.errors`), because with money that is what matters. Invariants: a connection goes back
to the pool only after its response was read to the end; cancellation at any point closes it; a request is never sent twice unless
the caller says that it is idempotent; responses, connections, waiting and time are bounded.

Deadlines cost an attribute, not a cancel scope: a reaper ends overdue connections (`server.http.reaper`), at most its tick too
late. Only waiting for a place and connecting, which are rare, have a scope.
"""

import re
import select
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from server.http.dial import AddressCheck, dial
from server.http.errors import NotSent, OutcomeUnknown
from server.http.parser import METHODS
from server.http.reaper import Reaper
from server.http.response import Response, ResponseParser
from server.http.transport import SocketTransport, TlsTransport, Transport, client_tls

ORIGINS_MAX = 1_024
WRITTEN_PART_BYTES = 262_144
_READ_EVENTS = select.POLLIN | select.POLLHUP | select.POLLERR

_URL = re.compile(r"([A-Za-z]+://[^/?#]*)([^#]*)(?:#.*)?", re.DOTALL)
_ORIGIN = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[^\[\]@:\\%\s]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_TARGET = re.compile(r"[/?][!-~]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The bounds of a client.

    `connect_seconds`: how long a call may wait for a place in the pool, and how long for a connection, before anything of it is
    sent; `write_seconds`: for each part of the request to be taken; `header_seconds`: from the end of the request to the end of
    the response's head; `total_seconds`: for everything after connecting, unless the call says otherwise. `check` sees every
    address before it is connected to, and may raise `Refused`. `tls` is for peers whose certificates the system does not know.
    """

    connections_per_origin_max: int = 256
    response_bytes_max: int = 1_048_576
    connect_seconds: float = 3.0
    write_seconds: float = 20.0
    header_seconds: float = 60.0
    total_seconds: float = 60.0
    idle_seconds: float = 60.0
    check: AddressCheck | None = None
    tls: ssl.SSLContext | None = None


@dataclass(slots=True)
class _Origin:
    """Where calls go, and the connections that wait there to be used again, the latest last."""

    is_secure: bool
    host: str
    port: int
    host_header: str
    free: trio.Semaphore
    idle: deque["_Connection"] = field(default_factory=deque)


@asynccontextmanager
async def open_client(options: ClientOptions | None = None) -> AsyncIterator["Client"]:
    """A client, for as long as the block runs. Its connections are closed at the end."""
    async with trio.open_nursery() as nursery:
        client = Client(options or ClientOptions())
        await nursery.start(client.reaper.run)
        try:
            yield client
        finally:
            client.close()
            nursery.cancel_scope.cancel()


class Client:
    """Calls to any number of origins. Made by `open_client`, which owns the task that enforces its deadlines."""

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._origins: dict[str, _Origin] = {}
        self._tls = options.tls or client_tls()
        self.reaper = Reaper()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        idempotent: bool = False,
        total_seconds: float | None = None,
    ) -> Response:
        """Send one request and read the whole response. Redirects are not followed.

        On cancellation the connection is closed. A pooled connection that is seen to be dead before anything was sent is
        replaced; one that dies later, before a byte of the response, is replaced once where the request is `idempotent`.
        Raises `NotSent`, `Refused`, `OutcomeUnknown` or `BadResponse`.
        """
        origin, target = self._find(url)
        data = _request_bytes(method, target, origin, headers, body)
        total = self._options.total_seconds if total_seconds is None else total_seconds
        bodiless = method == "HEAD"
        await self._take_place(origin)
        try:
            connection = _take_idle(origin)
            if connection is not None:
                try:
                    return await connection.exchange(data, bodiless=bodiless, total_seconds=total)
                except OutcomeUnknown:
                    if not idempotent or connection.expired or connection.heard:
                        raise
            connection = await self._connect(origin)
            return await connection.exchange(data, bodiless=bodiless, total_seconds=total)
        finally:
            origin.free.release()

    def close(self) -> None:
        """Close all idle connections. Those in use close with their calls."""
        for origin in self._origins.values():
            while origin.idle:
                origin.idle.pop().close()

    @property
    def connections(self) -> int:
        """How many connections are open, idle ones included."""
        return len(self.reaper.watched)

    def _find(self, url: str) -> tuple[_Origin, str]:
        match = _URL.fullmatch(url)
        if match is None:
            raise NotSent(f"not an http or https address: {url[:200]!r}")
        prefix, target = match.groups()
        origin = self._origins.get(prefix)
        if origin is None:
            origin = self._add_origin(prefix)
        return origin, target

    def _add_origin(self, prefix: str) -> _Origin:
        """A new origin; where there are many, those that are at rest are forgotten. Raises `NotSent`."""
        match = _ORIGIN.fullmatch(prefix)
        if match is None:
            raise NotSent(f"not an http or https address without a user: {prefix[:200]!r}")
        is_secure = match[1].lower() == "https"
        port = int(match[3]) if match[3] else (443 if is_secure else 80)
        try:
            host = match[2].strip("[]").lower().encode("idna").decode("ascii")
        except UnicodeError as error:
            raise NotSent(f"not a host name: {match[2][:200]!r}") from error
        if not 0 < port <= 65_535:
            raise NotSent(f"not a port: {port}")
        places = self._options.connections_per_origin_max
        if len(self._origins) >= ORIGINS_MAX:
            for name in [name for name, one in self._origins.items() if one.free.value == places]:
                for connection in self._origins.pop(name).idle:
                    connection.close()
        bracketed = f"[{host}]" if ":" in host else host
        host_header = f"{bracketed}:{port}" if match[3] else bracketed
        origin = self._origins[prefix] = _Origin(is_secure, host, port, host_header, trio.Semaphore(places))
        return origin

    async def _take_place(self, origin: _Origin) -> None:
        """A place among the origin's connections, first come first served. Raises `NotSent`."""
        if origin.free.value:
            origin.free.acquire_nowait()  # nobody waits, or they would have it
            return
        seconds = self._options.connect_seconds
        with trio.move_on_after(seconds) as scope:
            await origin.free.acquire()
        if scope.cancelled_caught:
            raise NotSent(f"no free connection to {origin.host}:{origin.port} within {seconds:g} s")

    async def _connect(self, origin: _Origin) -> "_Connection":
        """A new connection. Whatever goes wrong, nothing has been sent: raises `NotSent`."""
        seconds = self._options.connect_seconds
        where = f"{origin.host}:{origin.port}"
        with trio.move_on_after(seconds):
            try:
                connected = await dial(origin.host, origin.port, check=self._options.check)
                transport: Transport = SocketTransport(connected)
                if origin.is_secure:
                    transport = await TlsTransport.connect(connected, self._tls, host=origin.host)
                return _Connection(transport, connected, origin, self._options, self.reaper)
            except (OSError, ValueError) as error:
                raise NotSent(f"cannot connect to {where}: {error}") from error
        raise NotSent(f"no connection to {where} within {seconds:g} s")


class _Connection:
    """One connection: in use by one call, or idle in its origin's pool, or closed."""

    __slots__ = ("_options", "_origin", "_parser", "_poll", "_reaper", "_transport", "deadline", "expired", "idle")

    def __init__(
        self, transport: Transport, connected: socket.socket, origin: _Origin, options: ClientOptions, reaper: Reaper
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._options = options
        self._reaper = reaper
        self._parser = ResponseParser(bytes_max=options.response_bytes_max)
        self._poll = select.poll()
        self._poll.register(connected, _READ_EVENTS)
        self.deadline = reaper.now + options.idle_seconds
        self.expired = False
        self.idle = False
        reaper.watched.add(self)

    @property
    def heard(self) -> bool:
        """Whether any byte of the current response has come."""
        return self._parser.heard

    @property
    def is_dead(self) -> bool:
        """Whether an idle connection was closed by its peer, or said what nobody asked for."""
        return bool(self._poll.poll(0))

    async def exchange(self, data: bytes, *, bodiless: bool, total_seconds: float) -> Response:
        """One request and its response. The connection returns to the pool if it can, and is closed if not."""
        parser, reaper, options = self._parser, self._reaper, self._options
        parser.expect(bodiless=bodiless)
        ends_at = reaper.now + total_seconds
        reusable = False
        try:
            was_taken = await self._send(data, ends_at)
            self.deadline = min(reaper.now + options.header_seconds, ends_at)
            while not parser.complete:
                received = await self._transport.receive()
                if not received:
                    if not parser.ends_with_the_stream or self.expired:
                        raise OutcomeUnknown(self._why("the peer closed the connection before the response ended"))
                    break
                parser.feed(received)
                if parser.head_complete:
                    self.deadline = ends_at
            reusable = was_taken and parser.complete and parser.keep_alive and not self.expired
            return parser.response()
        except OSError as error:
            raise OutcomeUnknown(self._why(f"the connection broke before the response ended: {error}")) from error
        finally:
            if reusable:
                self.deadline = reaper.now + options.idle_seconds
                self.idle = True
                self._origin.idle.append(self)
            else:
                self.close()

    async def _send(self, data: bytes, ends_at: float) -> bool:
        """Send the request; False where the peer would not take all of it, which it may have explained in its response."""
        try:
            sent = self._transport.send_now(data)
            while sent < len(data):
                self.deadline = min(self._reaper.now + self._options.write_seconds, ends_at)
                part = data[sent : sent + WRITTEN_PART_BYTES]
                await self._transport.send_all(part)
                sent += len(part)
        except OSError:
            return False
        return True

    def _why(self, otherwise: str) -> str:
        return "the peer took too long to answer" if self.expired else otherwise

    def expire(self) -> None:
        """Called by the reaper: the call has taken too long, or nobody has needed the connection for a while."""
        if self.idle:
            self._origin.idle.remove(self)
            self.close()
        else:
            self.expired = True
            self._transport.shut_down()

    def close(self) -> None:
        """Close at once, without a farewell."""
        self._reaper.watched.discard(self)
        self._transport.close()


def _take_idle(origin: _Origin) -> _Connection | None:
    """The connection that was used last, if it still lives."""
    while origin.idle:
        connection = origin.idle.pop()
        connection.idle = False
        if not connection.is_dead:
            return connection
        connection.close()
    return None


def _request_bytes(method: str, target: str, origin: _Origin, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """The whole request. Raises `NotSent` for what could be read as another request than was meant."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    given = "".join(lines)
    if given.count("\n") != len(lines) or given.count("\r") != len(lines) or "\0" in given:
        raise NotSent("a header contains a line break")
    if method not in METHODS or (target and not _TARGET.fullmatch(target)):
        raise NotSent(f"not a method and target: {method} {target[:200]!r}")
    path = target if target.startswith("/") else "/" + target
    length = f"content-length: {len(body)}\r\n" if body or method not in ("GET", "HEAD") else ""
    try:
        return f"{method} {path} HTTP/1.1\r\nhost: {origin.host_header}\r\n{length}{given}\r\n".encode("latin-1") + body
    except UnicodeEncodeError as error:
        raise NotSent(f"a header cannot be written: {error}") from error
