"""One request and its response: the `receive` and `send` that an application is given."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

import trio

from server.http.asgi import Message
from server.http.parser import Request

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
_LAST_CHUNK = b"0\r\n\r\n"


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

    async def write(self, data: bytes) -> None:
        """Write all of it under the write deadline."""
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
        "_watch",
        "_wire",
        "broken",
        "finished",
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
        self.keep_alive = request.keep_alive
        self.started = False
        self.finished = False
        self.broken = False

    async def receive(self) -> Message:
        """ASGI's `receive`: body, or `http.disconnect` once the client has gone or the response has ended."""
        request = self._request
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
                return {"type": "http.disconnect"}
        if self.finished:
            return {"type": "http.disconnect"}
        body = b"".join(request.body)
        request.body.clear()
        self._has_given_all = request.complete
        return {"type": "http.request", "body": body, "more_body": not request.complete}

    async def send(self, message: Message) -> None:
        """ASGI's `send`. A response whose length is known leaves in one write, head and body together."""
        if message["type"] == "http.response.start":
            assert not self.started, "a response starts once"
            self._start(message["status"], message.get("headers", ()))
            self.started = True
            return
        assert self.started, "a response starts before its body"
        assert not self.finished, "a response ends once"
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
        elif self._watch is not None:
            self._watch.cancel()

    def _count(self, body: bytes, *, is_last: bool) -> None:
        """A body of another length than was said would be taken for the begin of the next response."""
        assert self._bytes_left is not None
        self._bytes_left -= len(body)
        if self._bytes_left < 0 or (is_last and self._bytes_left):
            self.started = not self._head  # nothing has left yet: there is room for an error
            self._head, self._bytes_left = b"", None
            raise RuntimeError("the body is not as long as its content-length says")

    async def _until_gone(self) -> Message:
        """Wait until the response has ended or the client has gone, for an application that watches for that."""
        if not self.finished:
            with trio.CancelScope() as self._watch:
                try:
                    await self._wire.until_gone()
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
        try:
            await self._wire.write(data)
        except OSError:
            self.broken = True
            raise

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        wire = self._wire
        parts = [STATUS_LINES[status], wire.date_header]
        lines = 3
        has_length = False
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"connection":
                if value.lower() == b"close":
                    self.keep_alive = False
                continue
            if lowered == b"content-length":
                has_length = True
                if not self._silent:
                    self._bytes_left = int(value)
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        # A body that the client was not told to send may or may not come: what follows could not be told apart.
        if wire.is_draining or (self._request.expects_continue and not self._request.complete):
            self.keep_alive = False
        if status in _BODILESS:
            self._silent = True
            self._bytes_left = None
        elif not has_length:
            if self._request.http_version == "1.1":
                self._chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
                lines += 1
            else:
                self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
            lines += 1
        elif self._request.http_version == "1.0":
            parts.append(b"connection: keep-alive\r\n")
            lines += 1
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise RuntimeError("a header of the response contains a line break")
        self._head = head
