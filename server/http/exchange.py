"""One request and its response: the `receive` and `send` that an application is given.

Invariants: what an application says about its response is held to, so that no byte of it can be taken for another response; once
a write was interrupted nothing more is written; the application is told of the end once, and waits for it as long as need be.
"""

from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

import trio

from server.http.asgi import Message
from server.http.parser import Request

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
_LAST_CHUNK = b"0\r\n\r\n"
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Wire(Protocol):
    """What an exchange needs of its connection."""

    @property
    def date_header(self) -> bytes:
        """The current Date header, ready to be sent."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether this connection should end after the current response."""
        ...

    def write_now(self, data: bytes) -> bytes | None:
        """Write what fits without waiting; the rest, None where all is written."""
        ...

    async def write(self, data: bytes) -> None:
        """Write all of it under the write deadline."""
        ...

    def finish_sending(self) -> None:
        """Nothing follows the response."""
        ...

    async def read_body(self, request: Request) -> bool:
        """Wait for more of the body under the body deadline; False where it will not come."""
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
        self._has_given_all = False
        self._watch: trio.CancelScope | None = None
        self._turn: trio.Event | None = None
        self.broken = False
        self.gone = False
        self.finished = False
        self._begin()

    def _begin(self) -> None:
        self._head = b""
        self._chunked = False
        self._silent = self._request.method == "HEAD"
        self._bytes_left: int | None = None
        self.keep_alive = self._request.keep_alive
        self.started = False

    def take_back(self) -> bool:
        """Forget a response of which nothing has left yet; whether there is room for another."""
        if self._head:
            self._begin()
        return not self.started and not self.broken

    async def receive(self) -> Message:
        """ASGI's `receive`: body, or `http.disconnect` once the client has gone or the response has ended."""
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
        """ASGI's `send`. A response whose length is known leaves in one write, head and body together."""
        kind = message["type"]
        if kind == "http.response.start" and not self.started:
            self._start(message["status"], message.get("headers", ()))
            self.started = True
            return
        if kind != "http.response.body" or not self.started or self.finished:
            raise RuntimeError(f"{kind} cannot be sent here: a response starts once, and then has a body that ends once")
        body: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if self._bytes_left is not None:
            self._count(body, is_last=not more)
        out, self._head = self._head, b""
        if not self._silent:
            if self._chunked:
                out += b"%x\r\n%b\r\n" % (len(body), body) if body else b""
                out += b"" if more else _LAST_CHUNK
            else:
                out += body
        if out:
            await self._write(out)
        self.finished = not more
        if more:
            await trio.lowlevel.checkpoint()  # whoever streams without end lets others have a turn
            return
        if not self.keep_alive:
            self._wire.finish_sending()
        if self._watch is not None:
            self._watch.cancel()

    def _count(self, body: bytes, *, is_last: bool) -> None:
        """A body of another length than was said would be taken for the begin of the next response."""
        assert self._bytes_left is not None
        self._bytes_left -= len(body)
        if self._bytes_left < 0 or (is_last and self._bytes_left):
            raise RuntimeError("the body is not as long as its content-length says")

    async def _until_gone(self) -> Message:
        """Wait until the response has ended or the client has gone, for an application that watches for that."""
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

    async def _write(self, data: bytes) -> None:
        """Write all of it; two tasks that send take turns, and nothing may follow a part of something."""
        while self._turn is not None:
            await self._turn.wait()
        if self.broken:
            raise ConnectionResetError("the connection has ended")
        self.broken = True
        rest = self._wire.write_now(data)
        if rest is not None:
            turn = self._turn = trio.Event()
            try:
                await self._wire.write(rest)
            finally:
                self._turn = None
                turn.set()
        self.broken = False

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Make the head. Raises `RuntimeError` where it would not be one."""
        if not 200 <= status < 1_000:
            raise RuntimeError(f"{status} is no status of a response")
        status_line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        parts = [status_line, self._wire.date_header]
        lines = 3
        length: bytes | None = None
        for name, value in headers:
            lowered = _field_name(name)
            if lowered == b"connection":
                if value.lower() == b"close":
                    self.keep_alive = False
                continue
            if lowered == b"content-length":
                if length is not None or not value.isdigit():
                    raise RuntimeError("a response has one content-length, of digits")
                length = value
                if status == 204:
                    continue
            elif lowered == b"date":
                parts[1], lines = b"", lines - 1
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        lines += self._frame(parts, status, length)
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise RuntimeError("a header of the response contains a line break")
        self._head = head

    def _frame(self, parts: list[bytes], status: int, length: bytes | None) -> int:
        """Decide how the body ends and whether the connection does; how many lines that took."""
        began_with = len(parts)
        request = self._request
        # A body that the client was not told to send may or may not come: what follows could not be told apart.
        if self._wire.is_draining or (request.expects_continue and not request.complete):
            self.keep_alive = False
        if status in _BODILESS:
            self._silent = True
        elif length is not None:
            self._bytes_left = None if self._silent else int(length)
        elif request.http_version == "1.1":
            self._chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
        else:
            self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif request.http_version == "1.0":
            parts.append(b"connection: keep-alive\r\n")
        return len(parts) - began_with


@lru_cache(maxsize=1_024)
def _field_name(name: bytes) -> bytes:
    """In lower case. Raises `RuntimeError` for what an application may not say: how a message is framed is the server's."""
    lowered = name.lower()
    if not name or not _TOKEN.issuperset(name) or lowered == b"transfer-encoding":
        raise RuntimeError(f"{name!r} is not a header that a response may have")
    return lowered
