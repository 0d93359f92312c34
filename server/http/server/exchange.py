"""One request and its response: the `receive` and `send` that an application gets.

Invariants: the application is held to what it says about its response, so that no byte of it can be taken for another response;
after an interrupted write nothing more is written; the application is told of the end once, and may wait for it for any time.
"""

from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

import trio

from server.http.asgi import Message
from server.http.server.parser import Request

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode("ascii") for status in HTTPStatus if status.value >= 200
}
_BODILESS = frozenset({204, 304})
_VARYING = frozenset({b"request-id", b"location"})
"""Headers that no two responses share: they would only push others out of the cache."""

_LAST_CHUNK = b"0\r\n\r\n"
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Wire(Protocol):
    """The parts of a connection that an exchange uses."""

    @property
    def date_header(self) -> bytes:
        """The current Date header, without its line break."""
        ...

    @property
    def is_draining(self) -> bool:
        """True if this connection should end after the current response."""
        ...

    def write_now(self, data: bytes) -> bytes | None:
        """Write what fits without waiting. Returns the rest, or None if all is written."""
        ...

    async def write(self, data: bytes) -> None:
        """Write everything under the write deadline."""
        ...

    async def finish_sending(self) -> None:
        """Tell the peer that nothing follows the response."""
        ...

    async def read_body(self, request: Request) -> bool:
        """Wait for more of the body under the body deadline. Returns False if it will not come."""
        ...

    async def until_gone(self) -> None:
        """Wait until the peer has finished sending."""
        ...


class Exchange:
    """The channel between a connection and one call of the application."""

    __slots__ = (
        "_bytes_left",
        "_chunked",
        "_has_given_all",
        "_head",
        "_request",
        "_silent",
        "_turn",
        "_watch",
        "_wire",
        "broken",
        "finished",
        "gone",
        "keep_alive",
        "started",
    )

    def __init__(self, wire: Wire, request: Request) -> None:
        self._wire = wire
        self._request = request
        self._head = b""
        self._chunked = False
        self._silent = request.method == "HEAD"
        self._bytes_left: int | None = None
        self._has_given_all = False
        self._watch: trio.CancelScope | None = None
        self._turn: trio.Event | None = None
        self.keep_alive = request.keep_alive
        self.started = self.finished = self.broken = self.gone = False

    def take_back(self) -> bool:
        """Discard a response of which nothing was sent. Returns whether that was possible, so that another can be sent."""
        if self._head:
            self.started, self._head = False, b""
            self._chunked, self._bytes_left = False, None
            self._silent, self.keep_alive = self._request.method == "HEAD", self._request.keep_alive
        return not self.started and not self.broken

    async def receive(self) -> Message:
        """ASGI's `receive`: body, or `http.disconnect` once the client has disconnected or the response has ended."""
        request = self._request
        if self.finished:
            return {"type": "http.disconnect"}
        if request.complete and request.body:
            body = request.body[0] if len(request.body) == 1 else b"".join(request.body)
            request.body.clear()
            self._has_given_all = True
            return {"type": "http.request", "body": body, "more_body": False}
        if self._has_given_all:
            return await self._until_gone()
        if request.expects_continue and not self.started:
            request.expects_continue = False
            await self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not request.body and not request.complete:
            if not await self._read_body():
                self.gone = True
                return {"type": "http.disconnect"}
        body = b"".join(request.body)
        request.body.clear()
        self._has_given_all = request.complete
        return {"type": "http.request", "body": body, "more_body": not request.complete}

    async def send(self, message: Message) -> None:
        """ASGI's `send`. A response of known length is written at once, head and body together."""
        kind = message["type"]
        if kind == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
            self.started = True
            return
        if kind != "http.response.body" or not self.started or self.finished:
            raise RuntimeError(f"{kind} cannot be sent here: a response starts once, and then has a body that ends once")
        body: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        left = self._bytes_left
        if left is not None:
            # A body of another length than announced would be taken for the beginning of the next response.
            left = self._bytes_left = left - len(body)
            if left < 0 or (left and not more):
                raise RuntimeError("the body is not as long as its content-length says")
        out, self._head = self._head, b""
        if not self._silent:
            if self._chunked:
                out += b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                out += b"" if more else _LAST_CHUNK
            else:
                out += body
        if out and (rest := self._write_now(out)) is not None:
            await self._write(rest)
        self.finished = not more
        if more:
            await trio.lowlevel.checkpoint()  # an endless stream must let other tasks run
            return
        if not self.keep_alive:
            await self._wire.finish_sending()
        if self._watch is not None:
            self._watch.cancel()

    async def _until_gone(self) -> Message:
        """Wait until the response has ended or the client has disconnected, for an application that watches for that."""
        with trio.CancelScope() as self._watch:
            try:
                await self._wire.until_gone()
                self.gone = True
            except OSError:
                self.broken = True
        self._watch = None
        return {"type": "http.disconnect"}

    async def _read_body(self) -> bool:
        try:
            return await self._wire.read_body(self._request)
        except OSError:
            self.broken = True
            return False

    def _write_now(self, data: bytes) -> bytes | None:
        """Write what fits without waiting. Returns the rest, which the caller must pass to `_write` at once, or None."""
        if self._turn is not None:
            return data
        if self.broken:
            raise ConnectionResetError("the connection has ended")
        try:
            return self._wire.write_now(data)
        except OSError:
            self.broken = True
            raise

    async def _write(self, data: bytes) -> None:
        """Write everything. Two tasks that send take turns, and nothing may follow part of a write."""
        while self._turn is not None:
            await self._turn.wait()
        if self.broken:
            raise ConnectionResetError("the connection has ended")
        turn = self._turn = trio.Event()
        self.broken = True
        try:
            await self._wire.write(data)
            self.broken = False
        finally:
            self._turn = None
            turn.set()

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head. Raises `RuntimeError` for an invalid one."""
        status_line = STATUS_LINES.get(status) or _unknown_status_line(status)
        lines = [status_line, self._wire.date_header]
        length: bytes | None = None
        for name, value in headers:
            lowered, line = _field(name, value) if name not in _VARYING else _made_field(name, value)
            if lowered == b"content-length":
                if length is not None or not value.isdigit():
                    raise RuntimeError("a response has one content-length, of digits")
                length = value
                if status == 204:
                    continue
            elif lowered == b"connection":
                if value.lower() == b"close":
                    self.keep_alive = False
                continue
            elif lowered == b"date":
                lines[1] = line
                continue
            lines.append(line)
        request = self._request
        # A body that the client was not told to send may or may not come, so what follows would be ambiguous.
        if self._wire.is_draining or (request.expects_continue and not request.complete):
            self.keep_alive = False
        if status in _BODILESS:
            self._silent = True
        elif length is not None:
            self._bytes_left = None if self._silent else int(length)
        elif request.http_version == "1.1":
            self._chunked = True
            lines.append(b"transfer-encoding: chunked")
        else:
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close")
        elif request.http_version == "1.0":
            lines.append(b"connection: keep-alive")
        lines.append(b"\r\n")
        self._head = b"\r\n".join(lines)


def _unknown_status_line(status: int) -> bytes:
    if not 200 <= status < 1_000:
        raise RuntimeError(f"{status} is not a response status")
    return b"HTTP/1.1 %d " % status


def _made_field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A header's name in lower case, and its line. Raises `RuntimeError` for an invalid header."""
    lowered = name.lower()
    if not name or not _TOKEN.issuperset(name) or lowered == b"transfer-encoding":
        raise RuntimeError(f"{name!r} is not a header that an application may set")
    if b"\n" in value or b"\r" in value or b"\0" in value:
        raise RuntimeError(f"the value of {name!r} contains a line break")
    return lowered, name + b": " + value


_field = lru_cache(maxsize=1_024)(_made_field)
"""Cached, because most responses repeat the same headers."""
