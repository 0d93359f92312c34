"""One connection: reads requests, awaits the application in this very task, writes responses.

Invariants: responses go out in the order of the requests; a response is never cut short silently (the connection is closed
instead); every wait has a deadline that the reaper enforces; a handler is never cancelled because its client went away; a request
body that the application did not read is read and thrown away up to a bound, past which the connection closes.
"""

import math
import socket as stdlib_socket
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
import trio

from server.http.asgi import Application, Message, Scope
from server.http.parser import BadRequest, Request, RequestParser
from server.http.reaper import Reaper

HEADER_SECONDS = 10.0
BODY_SECONDS = 30.0
IDLE_SECONDS = 75.0
WRITE_SECONDS = 20.0
DRAINED_BODY_BYTES_MAX = 1_048_576
_READ_BYTES = 65_536

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
_log = structlog.get_logger()


class Connection:
    """Serves one accepted socket until it is closed."""

    def __init__(self, socket: trio.socket.SocketType, app: Application, reaper: Reaper, *, is_draining: trio.Event) -> None:
        self._socket = socket
        self._app = app
        self._reaper = reaper
        self._draining = is_draining
        self._parser = RequestParser()
        self._client = _address(socket.getpeername)
        self._server = _address(socket.getsockname)
        self._eof = False
        self.deadline = math.inf
        self.idle = True

    def expire(self) -> None:
        """Called by the reaper: end whatever this connection waits for."""
        try:
            self._socket.shutdown(stdlib_socket.SHUT_RDWR)
        except OSError:
            self._eof = True

    async def serve(self) -> None:
        """Serve requests until the peer leaves, a bound is passed or the server drains."""
        self._reaper.watched.add(self)
        try:
            while await self._serve_next():
                pass
        except BadRequest as error:
            await self._refuse(error)
        except OSError:
            pass  # the peer is gone; whatever it asked for has been done
        finally:
            self._reaper.watched.discard(self)
            self._socket.close()

    async def _serve_next(self) -> bool:
        """Serve one request; whether another may follow."""
        requests = self._parser.requests
        self.idle = not requests
        self.deadline = self._reaper.now + IDLE_SECONDS
        while not requests:
            if self._parser.failure is not None:
                raise self._parser.failure
            if self._draining.is_set() and not self._parser.in_head:
                return False
            if not await self._read():
                return False
            if self._parser.in_head and self.idle:
                self.idle = False
                self.deadline = self._reaper.now + HEADER_SECONDS
        self.idle = False
        request = requests[0]
        exchange = _Exchange(self, request)
        self.deadline = math.inf
        try:
            await self._app(self._scope(request), exchange.receive, exchange.send)
        except Exception:  # noqa: BLE001 - whatever the application does, only its own request may fail
            if self._parser.failure is not None and not exchange.started:
                raise self._parser.failure from None
            _log.exception("the application failed", method=request.method, target=request.target.decode("latin-1"))
            if exchange.started:
                return False
            await exchange.send_error()
        if not exchange.started and self._parser.failure is not None:
            raise self._parser.failure
        if not exchange.finished or not await self._skip_body(request):
            return False
        requests.popleft()
        return exchange.keep_alive

    async def _read(self) -> bool:
        """Read once and parse; False at the end of the stream."""
        data = b"" if self._eof else await self._socket.recv(_READ_BYTES)
        if not data:
            self._eof = True
            return False
        self._parser.feed(data)
        return True

    async def read_body(self) -> bool:
        """Wait for more of the body; False where it will not come."""
        if self._parser.failure is not None:
            return False
        self.deadline = self._reaper.now + BODY_SECONDS
        try:
            return await self._read()
        finally:
            self.deadline = math.inf

    async def _skip_body(self, request: Request) -> bool:
        skipped = 0
        while not request.complete:
            skipped += request.body_bytes
            request.body.clear()
            request.body_bytes = 0
            if skipped > DRAINED_BODY_BYTES_MAX or request.expects_continue or not await self.read_body():
                return False
        return True

    async def write(self, data: bytes) -> None:
        """Write all of it: tried first, waited for only where the socket is full. Raises OSError where the peer is gone."""
        sent = await self._socket.send(data)
        if sent == len(data):
            return
        self.deadline = self._reaper.now + WRITE_SECONDS
        view = memoryview(data)
        while sent < len(data):
            sent += await self._socket.send(view[sent:])
            self.deadline = self._reaper.now + WRITE_SECONDS
        self.deadline = math.inf

    @property
    def date_header(self) -> bytes:
        """The current Date header, ready to be sent."""
        return self._reaper.date_header

    @property
    def is_draining(self) -> bool:
        """Whether this connection should end after the current response."""
        return self._draining.is_set()

    async def _refuse(self, error: BadRequest) -> None:
        body = error.reason.encode() + b"\n"
        head = b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
        status_line = _STATUS_LINES.get(error.status, _STATUS_LINES[400])
        try:
            await self.write(status_line + self.date_header + head + b"\r\n" + body)
            self._socket.shutdown(stdlib_socket.SHUT_WR)
            # Closing with unread data resets the connection and may destroy the reply on its way: read a little more.
            self.deadline = self._reaper.now + 1.0
            while await self._socket.recv(_READ_BYTES):
                pass
        except OSError:
            pass

    def _scope(self, request: Request) -> Scope:
        raw_path, _, query = request.target.partition(b"?")
        path = raw_path if b"%" not in raw_path else unquote_to_bytes(raw_path)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version,
            "method": request.method,
            "scheme": "http",
            "path": path.decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": self._client,
            "server": self._server,
        }


class _Exchange:
    """The `receive` and `send` of one request."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_remaining",
        "_request",
        "_silent",
        "finished",
        "keep_alive",
        "started",
    )

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._head = b""
        self._chunked = False
        self._silent = request.method == "HEAD"
        self._remaining: int | None = None
        self.keep_alive = request.keep_alive
        self.started = False
        self.finished = False

    async def receive(self) -> Message:
        request = self._request
        if request.expects_continue and not self.started:
            request.expects_continue = False
            await self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not request.body and not request.complete:
            if not await self._connection.read_body():
                return {"type": "http.disconnect"}
        if not request.body and self.finished:
            return {"type": "http.disconnect"}
        body = b"".join(request.body)
        request.body.clear()
        request.body_bytes = 0
        return {"type": "http.request", "body": body, "more_body": not request.complete}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not self.started
            self.started = True
            self._start(message["status"], message.get("headers", ()))
            return
        assert self.started
        assert not self.finished
        body: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if self._head and not more and not self._chunked:
            self.finished = True
            head, self._head = self._head, b""
            await self._connection.write(head if self._silent else head + body)
            return
        await self._send_part(body, more=more)

    async def send_error(self) -> None:
        body = b'{"type":"about:blank","title":"Internal Server Error","status":500,"code":"internal_error"}'
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _start(self, status: int, headers: Any) -> None:
        parts = [_STATUS_LINES[status], self._connection.date_header]
        has_length = False
        for name, value in headers:
            lowered = name.lower()
            has_length = has_length or lowered == b"content-length"
            if lowered == b"connection" and value.lower() == b"close":
                self.keep_alive = False
            elif lowered != b"connection":
                parts.append(b"%b: %b\r\n" % (name, value))
        if self._connection.is_draining:
            self.keep_alive = False
        self._silent = self._silent or status in _BODILESS
        if not has_length and status not in _BODILESS:
            if self._request.http_version == "1.1":
                self._chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self._request.http_version == "1.0":
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    async def _send_part(self, body: bytes, *, more: bool) -> None:
        out, self._head = self._head, b""
        if not self._silent:
            if self._chunked:
                out += b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                out += b"" if more else b"0\r\n\r\n"
            else:
                out += body
        self.finished = not more
        if out:
            await self._connection.write(out)


def _address(ask: Any) -> tuple[str, int] | None:
    try:
        address = ask()
    except OSError:
        return None
    return (address[0], address[1]) if isinstance(address, tuple) else None
