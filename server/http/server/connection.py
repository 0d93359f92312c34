"""One connection: reads requests, awaits the application in this very task, writes responses.

Invariants: responses go out in the order of the requests; a response is never cut short silently (the connection is closed
instead); every wait has a deadline that the reaper enforces; a handler is never cancelled because its client went away; a request
body that the application did not read is read and thrown away up to a bound, past which the connection closes.
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
from server.http.websocket.handshake import shake_hands
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

_log = structlog.get_logger()


@dataclass(slots=True)
class House:
    """What all connections of a listener share."""

    app: Application
    reaper: Reaper
    requests_in_flight_max: int
    render: Render = plain
    trusted_proxies: Networks = ()
    websockets: bool = False
    websocket_deflate: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    requests_in_flight: int = 0
    is_draining: bool = False


class Connection:
    """Serves one connected transport until it is closed."""

    __slots__ = (
        "_addresses",
        "_eof",
        "_house",
        "_parser",
        "_read_by",
        "_transport",
        "_websocket",
        "_write_by",
        "idle",
    )

    def __init__(self, transport: Transport, addresses: Addresses, house: House) -> None:
        self._transport = transport
        self._addresses = addresses
        self._house = house
        self._parser = RequestParser(websockets=house.websockets)
        self._eof = False
        self._websocket: WebSocket | None = None
        self._read_by = self._write_by = math.inf
        self.idle = True

    @property
    def deadline(self) -> float:
        """The reaper's: an application may read and write at the same time."""
        return min(self._read_by, self._write_by)

    def expire(self) -> None:
        """Called by the reaper and at the end of a drain: end whatever this connection waits for."""
        self._eof = True
        self._read_by = self._write_by = math.inf
        if self._websocket is not None:
            self._websocket.lose()
        self._transport.shut_down()

    def go_away(self) -> None:
        """Called at the begin of a drain: end now if nothing is in hand."""
        if self.idle:
            self.expire()
        elif self._websocket is not None:
            self._websocket.go_away()

    async def serve(self) -> None:
        """Serve requests until the peer leaves, a bound is passed or the server drains."""
        watched = self._house.reaper.watched
        watched.add(self)
        try:
            self._read_by = self._house.reaper.now + HEADER_SECONDS
            await self._transport.begin()
            while await self._serve_next():
                pass
        except BadRequest as error:
            await self._refuse(error)
        except OSError:
            pass  # the peer is gone; whatever it asked for has been done
        finally:
            watched.discard(self)
            self._transport.close()

    async def _serve_next(self) -> bool:
        """Serve one request; whether another may follow."""
        parser, house = self._parser, self._house
        requests = parser.requests
        if not requests and not await self._read_head():
            return False
        request = requests[0]
        exchange = Exchange(self, request)
        if house.requests_in_flight >= house.requests_in_flight_max or (request.is_websocket and house.is_draining):
            await self._turn_away(exchange)
        elif request.is_websocket:
            await self._serve_websocket(request, exchange)
            if exchange.finished:
                await self._linger()
            return False
        else:
            house.requests_in_flight += 1
            try:
                await self._call(request, exchange)
            finally:
                house.requests_in_flight -= 1
        if not exchange.finished:
            return False
        if not exchange.keep_alive or (not request.complete and not await self._skip_body(request)):
            await self._linger()
            return False
        del requests[0]
        return True

    async def _read_head(self) -> bool:
        """Read until a request's head is complete; False where none will come. Raises `BadRequest`."""
        parser, house = self._parser, self._house
        self.idle = not parser.in_head
        self._read_by = house.reaper.now + (IDLE_SECONDS if self.idle else HEADER_SECONDS)
        while not parser.requests:
            if parser.failure is not None:
                raise parser.failure
            if (house.is_draining and not parser.in_head) or not await self._read():
                return False
            if self.idle and parser.in_head:
                self.idle = False
                self._read_by = house.reaper.now + HEADER_SECONDS
        self.idle = False
        self._read_by = math.inf
        return True

    async def _call(self, request: Request, exchange: Exchange) -> None:
        """Call the application. Raises `BadRequest` where it could not answer because the rest of the request is bad."""
        failure = await call(self._house.app, self._scope(request), exchange.receive, exchange.send)
        if (exchange.finished and failure is None) or isinstance(failure, Abort):
            return
        if not request.complete and self._parser.failure is not None and exchange.take_back():
            raise self._parser.failure
        if exchange.broken or (failure is None and exchange.gone):
            return  # the peer is gone; that is no failure of the application
        answer = self._house.render(Refusal.FAILED)
        where = {"method": request.method, "target": request.target.decode("latin-1"), "request_id": answer.request_id}
        if failure is not None:
            _log.error("the application failed", exc_info=failure, **where)
        elif request.complete:
            _log.error("the application did not answer", **where)
        if exchange.take_back():
            await refuse(exchange.send, answer)

    async def _serve_websocket(self, request: Request, exchange: Exchange) -> None:
        """Serve it to its end. Raises `BadRequest` where the handshake is not what it should be."""
        handshake = shake_hands(request)
        house = self._house
        try:
            async with trio.open_nursery() as nursery:
                websocket = WebSocket(
                    self._transport,
                    house.reaper,
                    nursery,
                    handshake,
                    exchange,
                    render=house.render,
                    deflate=house.websocket_deflate,
                )
                self._websocket = websocket
                await websocket.run(house.app, self._scope(request))
        finally:
            if self._websocket is not None:
                self._websocket.forget()
                self._websocket = None

    async def _turn_away(self, exchange: Exchange) -> None:
        """Say that there is no room, before anything has happened."""
        await refuse(exchange.send, self._house.render(Refusal.OVERLOADED))

    async def _read(self) -> bool:
        """Read once and parse; False at the end of the stream, or where this connection has expired meanwhile.

        A request that is read from a connection that was shut down could be served and never answered.
        """
        data = b"" if self._eof else await self._transport.receive()
        if self._eof or not data:
            self._eof = True
            return False
        self._parser.feed(data)
        return True

    async def read_body(self, request: Request) -> bool:
        """Wait for more of the body; False where it will not come. A body has 30 s, and longer only at 500 B/s or more."""
        if self._parser.failure is not None:
            return False
        request.body_began = min(request.body_began, self._house.reaper.now)
        self._read_by = request.body_began + BODY_SECONDS + request.body_bytes / BODY_BYTES_PER_SECOND_MIN
        try:
            return await self._read()
        finally:
            self._read_by = math.inf

    async def until_gone(self) -> None:
        """Wait until the peer has finished sending. What it sends before that is not read beyond the next request's begin."""
        parser = self._parser
        while len(parser.requests) == 1 and not parser.in_head and parser.failure is None:
            if not await self._read():
                return
        while not self._eof and not self._transport.is_gone():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(WATCH_SECONDS)

    async def _skip_body(self, request: Request) -> bool:
        """Throw the rest of the body away; False where that is too much, or the client still waits to be told to send it."""
        began_with = request.body_bytes
        while not request.complete:
            request.body.clear()
            too_much = request.body_bytes - began_with > SKIPPED_BODY_BYTES_MAX
            if too_much or request.expects_continue or not await self.read_body(request):
                return False
        return True

    def write_now(self, data: bytes) -> bytes | None:
        """Write what fits without waiting; the rest, None where all is written. Raises OSError where the peer is gone."""
        sent = self._transport.send_now(data)
        if sent == len(data) and not self._transport.has_unsent:
            return None
        return data[sent:]

    async def write(self, data: bytes) -> None:
        """Write all of it, waiting for the peer. Raises OSError where it is gone.

        The deadline moves with progress, so it is the peer's slowness that ends a connection and not a large response.
        """
        try:
            for at in range(0, max(len(data), 1), WRITTEN_PART_BYTES):
                self._write_by = self._house.reaper.now + WRITE_SECONDS
                await self._transport.send_all(data[at : at + WRITTEN_PART_BYTES])
        finally:
            self._write_by = math.inf

    async def finish_sending(self) -> None:
        """Nothing follows the response: the peer is told at once, even if the application goes on."""
        self._write_by = self._house.reaper.now + WRITE_SECONDS
        try:
            await self._transport.finish_sending()
        finally:
            self._write_by = math.inf

    @property
    def date_header(self) -> bytes:
        """The current Date header, without its line break."""
        return self._house.reaper.date_header

    @property
    def is_draining(self) -> bool:
        """Whether this connection should end after the current response."""
        return self._house.is_draining

    async def _refuse(self, error: BadRequest) -> None:
        """Answer what cannot be served, and close so that the answer arrives."""
        body = error.reason.encode() + b"\n"
        head = error.headers + b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
        try:
            status_line = STATUS_LINES.get(error.status, STATUS_LINES[400])
            await self.write(b"\r\n".join((status_line, self.date_header, head, body)))
            await self._linger()
        except OSError:
            pass

    async def _linger(self) -> None:
        """Closing with unread data resets the connection and may destroy the reply on its way: read a little more."""
        await self.finish_sending()
        self._read_by = self._house.reaper.now + (DRAINING_LINGER_SECONDS if self._house.is_draining else LINGER_SECONDS)
        while not self._eof and await self._transport.receive():
            pass

    def _scope(self, request: Request) -> Scope:
        raw_path, _, query = request.target.partition(b"?")
        path = raw_path if b"%" not in raw_path else unquote_to_bytes(raw_path)
        addresses, trusted = self._addresses, self._house.trusted_proxies
        if trusted:
            addresses = forwarded(addresses, request.headers, trusted)
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
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
        if self._house.state:
            scope["state"] = self._house.state.copy()
        return scope
