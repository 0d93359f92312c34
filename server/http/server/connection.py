"""One connection: reads requests, awaits the application in its own task, writes responses.

Invariants: responses go out in the order of the requests; a response is never cut short silently (the connection is closed
instead); every wait has a deadline that the reaper enforces; a handler is never canceled because its client disconnected; an
unread request body is discarded up to a limit, past which the connection closes.
"""

import math
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
import trio

from server.http.asgi import Abort, Application, Scope, call
from server.http.reaper import Reaper
from server.http.refusal import Refusal, Render, plain, refuse
from server.http.server.exchange import STATUS_LINES, Exchange
from server.http.server.forwarded import Addresses, Networks, forwarded
from server.http.server.parser import BadRequest, Request, RequestParser
from server.http.transport import Transport
from server.http.websocket.handshake import parse_handshake
from server.http.websocket.websocket import WebSocket

HEADER_SECONDS = 10.0
BODY_SECONDS = 30.0
BODY_BYTES_PER_SECOND_MIN = 500
IDLE_SECONDS = 75.0
WRITE_SECONDS = 20.0
WATCH_SECONDS = 1.0
LINGER_SECONDS = 5.0
DRAINING_LINGER_SECONDS = 1.0
SKIPPED_BODY_BYTES_MAX = 1_048_576
WRITTEN_PART_BYTES = 262_144

_ASGI = {"version": "3.0", "spec_version": "2.4"}
_log = structlog.get_logger()


@dataclass(slots=True)
class ListenerState:
    """The state that all connections of a listener share."""

    app: Application
    reaper: Reaper
    requests_in_flight_max: int
    render: Render = plain
    trusted_proxies: Networks = ()
    websockets: bool = False
    websocket_deflate: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    requests_in_flight: int = 0
    is_retiring: bool = False
    is_draining: bool = False


class Connection:
    """Serves one connected transport until it is closed."""

    __slots__ = (
        "_addresses",
        "_body",
        "_eof",
        "_exchange",
        "_is_late",
        "_parser",
        "_read_by",
        "_shared",
        "_transport",
        "_websocket",
        "_write_by",
        "idle",
    )

    def __init__(self, transport: Transport, addresses: Addresses, shared: ListenerState) -> None:
        self._transport = transport
        self._addresses = addresses
        self._shared = shared
        self._parser = RequestParser(websockets=shared.websockets)
        self._eof = False
        self._exchange: Exchange | None = None
        self._websocket: WebSocket | None = None
        self._read_by = self._write_by = math.inf
        self._body: trio.CancelScope | None = None
        self._is_late = False
        self.idle = True

    @property
    def deadline(self) -> float:
        """The reaper's deadline. An application may read and write at the same time, so it is the earlier of two."""
        return min(self._read_by, self._write_by)

    def expire(self) -> None:
        """End whatever this connection waits for; called by the reaper and at the end of a drain.

        A body that is late ends; its request can still be answered if the response has not started.
        """
        if self._body is not None and not self._is_late and self._exchange is not None and not self._exchange.started:
            self._is_late = True
            self._read_by = math.inf
            self._body.cancel()
            return
        self._eof = True
        self._read_by = self._write_by = math.inf
        if self._websocket is not None:
            self._websocket.lose()
        self._transport.shut_down()

    def drain(self) -> None:
        """Called when draining starts: close the connection if it is idle."""
        if self.idle:
            self.expire()
        elif self._websocket is not None:
            self._websocket.drain()

    async def serve(self) -> None:
        """Serve requests until the peer leaves, a limit is exceeded or the server drains."""
        reaper = self._shared.reaper
        reaper.watch(self)
        try:
            self._read_by = reaper.now + HEADER_SECONDS
            await self._transport.begin()
            while await self._serve_next():
                pass
        except BadRequest as error:
            await self._refuse(error)
        except OSError:
            pass  # the peer is gone; its requests have been carried out
        finally:
            reaper.watched.discard(self)
            self._transport.close()

    async def _serve_next(self) -> bool:
        """Serve one request. Returns whether another may follow."""
        parser, shared = self._parser, self._shared
        requests = parser.requests
        if not requests and not await self._read_head():
            return False
        request = requests[0]
        exchange = self._exchange = Exchange(self, request)
        if shared.requests_in_flight >= shared.requests_in_flight_max or (request.is_websocket and shared.is_draining):
            await refuse(exchange.send, shared.render(Refusal.OVERLOADED))  # before anything has happened
        elif request.is_websocket:
            await self._serve_websocket(request, exchange)
            if exchange.finished:
                await self._linger()
            return False
        else:
            shared.requests_in_flight += 1
            try:
                await self._call(request, exchange)
            finally:
                shared.requests_in_flight -= 1
        if not exchange.finished:
            return False
        if not exchange.keep_alive or (not request.complete and not await self._skip_body(request)):
            await self._linger()
            return False
        del requests[0]
        return True

    async def _read_head(self) -> bool:
        """Read until a request's head is complete. Returns False if none will come. Raises `BadRequest`."""
        parser, shared = self._parser, self._shared
        self.idle = not parser.in_head
        self._read_by = shared.reaper.now + (IDLE_SECONDS if self.idle else HEADER_SECONDS)
        while not parser.requests:
            if parser.failure is not None:
                raise parser.failure
            if (shared.is_draining and not parser.in_head) or not await self._read():
                return False
            if self.idle and parser.in_head:
                self.idle = False
                self._read_by = shared.reaper.now + HEADER_SECONDS
        self.idle = False
        self._read_by = math.inf
        return True

    async def _call(self, request: Request, exchange: Exchange) -> None:
        """Call the application. Raises `BadRequest` if it could not answer because the rest of the request is bad."""
        failure = await call(self._shared.app, self._scope(request), exchange.receive, exchange.send)
        if (exchange.finished and failure is None) or isinstance(failure, Abort):
            return
        if not request.complete and self._parser.failure is not None and exchange.take_back():
            raise self._parser.failure
        if self._is_late and not exchange.started:
            exchange.keep_alive = False
            await refuse(exchange.send, self._shared.render(Refusal.LATE))
            return
        if exchange.broken or (failure is None and exchange.gone):
            return  # the peer is gone; that is not a failure of the application
        answer = self._shared.render(Refusal.FAILED)
        where = {"method": request.method, "target": request.target.decode("latin-1"), "request_id": answer.request_id}
        if failure is not None:
            _log.error("the application failed", exc_info=failure, **where)
        elif request.complete:
            _log.error("the application did not answer", **where)
        if exchange.take_back():
            await refuse(exchange.send, answer)

    async def _serve_websocket(self, request: Request, exchange: Exchange) -> None:
        """Serve a websocket to its end. Raises `BadRequest` for an invalid handshake."""
        handshake = parse_handshake(request)
        shared = self._shared
        try:
            async with trio.open_nursery() as nursery:
                websocket = WebSocket(
                    self._transport,
                    shared.reaper,
                    nursery,
                    handshake,
                    exchange,
                    render=shared.render,
                    deflate=shared.websocket_deflate,
                )
                self._websocket = websocket
                await websocket.run(shared.app, self._scope(request))
        finally:
            if self._websocket is not None:
                self._websocket.forget()
                self._websocket = None

    async def _read(self) -> bool:
        """Read once and parse. Returns False at the end of the stream, or if this connection expired meanwhile.

        A request read from a connection that was shut down could be served but never answered.
        """
        data = b"" if self._eof else await self._transport.receive()
        if self._eof or not data:
            self._eof = True
            return False
        self._parser.feed(data)
        return True

    async def read_body(self, request: Request) -> bool:
        """Wait for more of the body. Returns False if it will not come. A body has 30 s, and longer only at 500 B/s or more."""
        if self._parser.failure is not None or self._is_late:
            return False
        request.body_began = min(request.body_began, self._shared.reaper.now)
        self._read_by = request.body_began + BODY_SECONDS + request.body_bytes / BODY_BYTES_PER_SECOND_MIN
        try:
            with trio.CancelScope() as self._body:
                return await self._read()
        finally:
            self._body = None
            self._read_by = math.inf
        return False

    async def until_gone(self) -> None:
        """Wait until the peer has finished sending. Input before that is read only up to the start of the next request."""
        parser = self._parser
        while len(parser.requests) == 1 and not parser.in_head and parser.failure is None:
            if not await self._read():
                return
        while not self._eof and not self._transport.is_gone():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(WATCH_SECONDS)

    async def _skip_body(self, request: Request) -> bool:
        """Discard the rest of the body. Returns False if that is too much, or the client still waits for 100-continue."""
        began_with = request.body_bytes
        while not request.complete:
            request.body.clear()
            too_much = request.body_bytes - began_with > SKIPPED_BODY_BYTES_MAX
            if too_much or request.expects_continue or not await self.read_body(request):
                return False
        return True

    def write_now(self, data: bytes) -> bytes | None:
        """Write what fits without waiting. Returns the rest, or None if all is written. Raises OSError if the peer is gone."""
        sent = self._transport.send_now(data)
        if sent == len(data) and not self._transport.has_unsent:
            return None
        return data[sent:]

    async def write(self, data: bytes) -> None:
        """Write everything, waiting for the peer. Raises OSError if it is gone.

        The deadline moves with progress, so a slow peer ends a connection and a large response does not.
        """
        try:
            for at in range(0, max(len(data), 1), WRITTEN_PART_BYTES):
                self._write_by = self._shared.reaper.now + WRITE_SECONDS
                await self._transport.send_all(data[at : at + WRITTEN_PART_BYTES])
        finally:
            self._write_by = math.inf

    async def finish_sending(self) -> None:
        """Tell the peer at once that nothing follows the response, even if the application continues."""
        self._write_by = self._shared.reaper.now + WRITE_SECONDS
        try:
            await self._transport.finish_sending()
        finally:
            self._write_by = math.inf

    @property
    def date_header(self) -> bytes:
        """The current Date header, without its line break."""
        return self._shared.reaper.date_header

    @property
    def is_draining(self) -> bool:
        """True if this connection should end after the current response."""
        return self._shared.is_draining or self._shared.is_retiring

    async def _refuse(self, error: BadRequest) -> None:
        """Reply to an invalid request, and close so that the reply arrives."""
        body = error.reason.encode() + b"\n"
        head = error.headers + b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
        try:
            status_line = STATUS_LINES.get(error.status, STATUS_LINES[400])
            await self.write(b"\r\n".join((status_line, self.date_header, head, body)))
            await self._linger()
        except OSError:
            pass

    async def _linger(self) -> None:
        """Read a little more before closing: closing with unread data resets the connection and may destroy the reply on
        its way.
        """
        await self.finish_sending()
        self._read_by = self._shared.reaper.now + (DRAINING_LINGER_SECONDS if self._shared.is_draining else LINGER_SECONDS)
        while not self._eof and await self._transport.receive():
            pass

    def _scope(self, request: Request) -> Scope:
        raw_path, _, query = request.target.partition(b"?")
        path = raw_path if b"%" not in raw_path else unquote_to_bytes(raw_path)
        addresses, trusted = self._addresses, self._shared.trusted_proxies
        if trusted:
            addresses = forwarded(addresses, request.headers, trusted)
        scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": request.http_version,
            "method": request.method,
            "scheme": addresses.scheme,
            "path": path.decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": addresses.client,
            "server": addresses.server,
        }
        if self._shared.state:
            scope["state"] = self._shared.state.copy()
        return scope
