"""An HTTP/1.1 client on bare trio: a keep-alive pool per origin, llhttp for the responses.

Its errors say what is known, because with money that is what matters: `NotSent` (the peer provably received nothing, so the
call may be repeated elsewhere), `OutcomeUnknown` (it may have received the request), `BadResponse` (it answered something
that is not HTTP or over the bounds). Invariants: a connection goes back to the pool only after its response was read to the
end; cancellation at any point closes it; responses, connections and waiting are bounded; callers own the deadlines.
"""

import select
import ssl
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import httptools
import trio

from core.errors import FlorinError

CONNECTIONS_PER_ORIGIN_MAX = 256
ORIGINS_MAX = 1_024
IDLE_SECONDS = 60.0
CONNECT_SECONDS = 3.0
"""How long a call may wait for a place in the pool and a connection, before anything of it is sent."""
RESPONSE_BYTES_MAX = 1_048_576
_READ_BYTES = 65_536


class ClientError(FlorinError):
    """A call over HTTP failed."""

    code = "http_error"


class NotSent(ClientError):
    """Nothing reached the peer."""


class OutcomeUnknown(ClientError):
    """The peer may have received the request; its answer did not arrive."""


class BadResponse(ClientError):
    """The peer answered with something that cannot be used."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response. Header names are in lower case."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The first header of that (lower case) name."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, slots=True)
class _Origin:
    scheme: str
    host: str
    port: int


@dataclass(slots=True)
class _Pool:
    free: trio.Semaphore
    idle: deque["_Connection"] = field(default_factory=deque)


class Client:
    """Calls to any number of origins. One per worker; close it with `close`."""

    def __init__(
        self,
        *,
        connections_per_origin_max: int = CONNECTIONS_PER_ORIGIN_MAX,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        self._connect_seconds = connect_seconds
        self._connections_max = connections_per_origin_max
        self._response_bytes_max = response_bytes_max
        self._pools: dict[_Origin, _Pool] = {}
        self._tls = ssl.create_default_context()

    async def request(self, method: str, url: str, *, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> Response:
        """Send one request and read the whole response. Redirects are not followed.

        The deadline is the caller's cancel scope; on cancellation the connection is closed. A pooled connection that turns
        out to be dead before a byte of the request could be sent is replaced. Raises `NotSent`, `OutcomeUnknown` or
        `BadResponse`.
        """
        try:
            parts = urlsplit(url)
            origin = _origin(parts)
            head = _head(method, parts, headers, body)
        except ValueError as error:  # UnicodeError is one
            raise NotSent(f"not an address that can be called: {error}") from error
        pool = self._pool(origin)
        connection = await self._take(pool, origin)
        reusable = False
        try:
            response, reusable = await connection.exchange(head + body, bodiless=method == "HEAD")
            return response
        finally:
            if reusable:
                connection.idle_since = trio.current_time()
                pool.idle.append(connection)
                while pool.idle and not pool.idle[0].is_fresh():
                    pool.idle.popleft().close()
            else:
                connection.close()
            pool.free.release()

    def _pool(self, origin: _Origin) -> _Pool:
        """The origin's pool; where there are many origins, those that are at rest are forgotten."""
        pool = self._pools.get(origin)
        if pool is None:
            if len(self._pools) >= ORIGINS_MAX:
                for other, one in list(self._pools.items()):
                    if one.free.value == self._connections_max:
                        del self._pools[other]
                        for connection in one.idle:
                            connection.close()
            pool = self._pools[origin] = _Pool(trio.Semaphore(self._connections_max))
        return pool

    async def _take(self, pool: _Pool, origin: _Origin) -> "_Connection":
        """A place and a connection. Whatever time this may take, nothing has been sent: raises `NotSent`."""
        with trio.move_on_after(self._connect_seconds):
            await pool.free.acquire()
            try:
                return _take_idle(pool) or await self._connect(origin)
            except BaseException:
                pool.free.release()
                raise
        raise NotSent(f"no connection to {origin.host}:{origin.port} within {self._connect_seconds:g} s")

    def close(self) -> None:
        """Close all idle connections."""
        for pool in self._pools.values():
            while pool.idle:
                pool.idle.pop().close()

    async def _connect(self, origin: _Origin) -> "_Connection":
        try:
            stream = await trio.open_tcp_stream(origin.host, origin.port)
            try:
                stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
                if origin.scheme == "https":
                    secured = trio.SSLStream(stream, self._tls, server_hostname=origin.host, https_compatible=True)
                    await secured.do_handshake()
                    return _Connection(secured, stream, self._response_bytes_max)
            except BaseException:
                stream.socket.close()
                raise
        except (OSError, ValueError, trio.BrokenResourceError, ssl.SSLError) as error:
            raise NotSent(f"cannot connect to {origin.host}:{origin.port}: {error.__cause__ or error}") from error
        return _Connection(stream, stream, self._response_bytes_max)


class _Connection:
    """One connection and the parser of its responses."""

    def __init__(
        self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], raw: trio.SocketStream, bytes_max: int
    ) -> None:
        self._stream = stream
        self._raw = raw
        self._bytes_max = bytes_max
        self.idle_since = 0.0

    async def exchange(self, data: bytes, *, bodiless: bool) -> tuple[Response, bool]:
        """One request and its response, and whether the connection can be used again."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise OutcomeUnknown(f"the connection broke while the request was sent: {error}") from error
        parser = _ResponseParser(self._bytes_max, bodiless=bodiless)
        while not parser.complete:
            try:
                received = await self._stream.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                raise OutcomeUnknown(f"the connection broke before the response ended: {error}") from error
            if received:
                parser.feed(bytes(received))
            elif parser.ends_with_the_stream:
                return parser.response(), False
            else:
                raise OutcomeUnknown("the peer closed the connection before the response ended")
        return parser.response(), parser.keep_alive

    def is_fresh(self) -> bool:
        """Whether it may be used again: not idle for too long, not closed by the peer."""
        if trio.current_time() - self.idle_since > IDLE_SECONDS:
            return False
        poller = select.poll()
        poller.register(self._raw.socket.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return not poller.poll(0)

    def close(self) -> None:
        """Close at once, without a farewell."""
        self._raw.socket.close()


class _ResponseParser:
    """llhttp's callbacks for one response. A 1xx is skipped."""

    def __init__(self, bytes_max: int, *, bodiless: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._bytes_max = bytes_max
        self._bodiless = bodiless
        self._bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._status = 0
        self._has_length = False
        self.complete = False
        self.keep_alive = False

    @property
    def ends_with_the_stream(self) -> bool:
        """Whether the end of the stream is the end of the body."""
        return self._status >= 200 and not self._has_length

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `BadResponse`."""
        self._bytes += len(data)
        if self._bytes > self._bytes_max:
            raise BadResponse(f"the response is larger than {self._bytes_max} bytes")
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise BadResponse(f"not an HTTP response: {error}") from error

    def response(self) -> Response:
        """What was read."""
        return Response(self._status, self._headers, b"".join(self._body))

    def on_message_begin(self) -> None:
        if self.complete:
            raise BadResponse("bytes after the end of the response")
        self._headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        self._headers.append((lowered, value))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self.keep_alive = self._parser.should_keep_alive()
            if self._bodiless:
                self.complete = True

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._status >= 200:
            self.complete = True


def _take_idle(pool: _Pool) -> _Connection | None:
    while pool.idle:
        connection = pool.idle.pop()
        if connection.is_fresh():
            return connection
        connection.close()
    return None


def _origin(parts: SplitResult) -> _Origin:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NotSent(f"not an http or https address: {parts.geturl()}")
    return _Origin(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))


def _head(method: str, parts: SplitResult, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    host = parts.netloc.rpartition("@")[2]
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}"]
    lines.extend(f"{name}: {value}" for name, value in headers)
    if any("\r" in line or "\n" in line for line in lines):
        raise NotSent("a header contains a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
