"""HTTP/1.1 on `bench.generator.loop`, both sides: a pool of client connections, and a listening server.

httptools does the framing. Invariants: a connection has one request at a time; a failed request is answered with status 0 exactly
once; at most `connections_max` connections are open to an origin, and a request that finds none free waits, with its clock
running.
"""

import errno
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools

from bench.generator.loop import Loop

READ_BYTES = 65_536
LOST = 0
Answered = Callable[[int, bytes], None]
"""Called with the status and the body. The status is `LOST` if there was no complete response."""


class Pool:
    """Connections to one origin."""

    def __init__(self, loop: Loop, url: str, *, connections_max: int) -> None:
        parts = urlsplit(url)
        self.loop = loop
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.host = parts.netloc.encode()
        self.idle: list[Channel] = []
        self.waiting: deque[tuple[bytes, Answered]] = deque()
        self.channels: set[Channel] = set()
        self._connections_max = connections_max

    def ask(self, data: bytes, answered: Answered) -> None:
        """Send a request, now or when a connection is free."""
        if self.idle:
            self.idle.pop().ask(data, answered)
        elif len(self.channels) < self._connections_max:
            self.channels.add(Channel(self, data, answered))
        else:
            self.waiting.append((data, answered))

    def give_back(self, channel: "Channel") -> None:
        """Return a free connection to the pool."""
        if self.waiting:
            channel.ask(*self.waiting.popleft())
        else:
            self.idle.append(channel)

    def lose(self, channel: "Channel") -> None:
        """Remove a closed connection from the pool."""
        self.channels.discard(channel)
        if channel in self.idle:
            self.idle.remove(channel)
        if self.waiting and len(self.channels) < self._connections_max:
            self.channels.add(Channel(self, *self.waiting.popleft()))

    def forget(self, answered: Answered) -> None:
        """Abandon a request: close its connection, or never send it."""
        self.waiting = deque(one for one in self.waiting if one[1] != answered)
        for channel in list(self.channels):
            if channel.is_for(answered):
                channel.close(is_told=False)

    def forget_all(self) -> None:
        """Abandon all requests."""
        self.waiting.clear()
        for channel in self.channels - set(self.idle):
            channel.close(is_told=False)


class Channel:
    """One connection, opened with its first request."""

    __slots__ = ("_answered", "_body", "_parser", "_pool", "_socket", "_unsent")

    def __init__(self, pool: Pool, data: bytes, answered: Answered) -> None:
        self._pool = pool
        self._answered: Answered | None = answered
        self._unsent = data
        self._body = b""
        self._parser: Any = httptools.HttpResponseParser(self)
        self._socket = socket.socket(socket.AF_INET6 if ":" in pool.address[0] else socket.AF_INET)
        self._socket.settimeout(0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._socket.connect_ex(pool.address)
        self._pool.loop.watch(self._socket.fileno(), self._on_event, select.EPOLLIN | select.EPOLLOUT)
        if code not in (0, errno.EINPROGRESS):
            # not at once: the caller must not be answered before it has returned
            self._pool.loop.call_at(self._pool.loop.now, self.close)

    def ask(self, data: bytes, answered: Answered) -> None:
        """Send a request."""
        self._answered = answered
        self._body = b""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._pool.loop.call_at(self._pool.loop.now, self.close)
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._pool.loop.watch(self._socket.fileno(), self._on_event, select.EPOLLIN | select.EPOLLOUT)

    def _on_event(self, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT and self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
                if not self._unsent:
                    self._pool.loop.watch(self._socket.fileno(), self._on_event)
                if not mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    return
            received = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self.close()
            return
        try:
            self._parser.feed_data(received)
        except httptools.HttpParserError:
            self.close()

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        self._body = self._body + part if self._body else part

    def on_message_complete(self) -> None:
        """Called by the parser."""
        status, keeps = self._parser.get_status_code(), self._parser.should_keep_alive()
        answered, self._answered = self._answered, None
        body, self._body = self._body, b""
        if keeps:
            self._pool.give_back(self)
        else:
            self.close()
        if answered is not None:
            answered(status, body)

    def is_for(self, answered: Answered) -> bool:
        """Return whether this is the connection of that request."""
        return self._answered == answered

    def close(self, *, is_told: bool = True) -> None:
        """Close the connection. A request under way is lost, and its caller is told."""
        if self._socket.fileno() < 0:
            return
        self._pool.loop.forget(self._socket.fileno())
        self._socket.close()
        answered, self._answered = self._answered, None
        self._pool.lose(self)
        if answered is not None and is_told:
            answered(LOST, b"")


Answer = Callable[["Served", bytes, bytes, bytes], None]
"""Called with a request: the connection to answer on, its method, target and body."""


def listen(loop: Loop, listening: socket.socket, answer: Answer) -> None:
    """Answer requests on a listening socket."""
    listening.settimeout(0)

    def accept(_: int) -> None:
        while True:
            try:
                peer, _address = listening.accept()
            except OSError:
                return
            Served(loop, peer, answer)

    loop.watch(listening.fileno(), accept)


class Served:
    """A connection of the server's side."""

    __slots__ = ("_answer", "_body", "_loop", "_parser", "_socket", "_target", "_unsent")

    def __init__(self, loop: Loop, peer: socket.socket, answer: Answer) -> None:
        self._loop = loop
        self._socket = peer
        self._answer = answer
        self._body = self._target = self._unsent = b""
        self._parser: Any = httptools.HttpRequestParser(self)
        peer.settimeout(0)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.watch(peer.fileno(), self._on_event)

    def _on_event(self, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT and self._unsent:
                self._send(b"")
            received = self._socket.recv(READ_BYTES) if mask & ~select.EPOLLOUT else None
            if received is None:
                return
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self.close()
            return
        try:
            self._parser.feed_data(received)
        except httptools.HttpParserError:
            self.close()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._body = self._target = b""

    def on_url(self, part: bytes) -> None:
        """Called by the parser."""
        self._target += part

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        self._body = self._body + part if self._body else part

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._answer(self, self._parser.get_method(), self._target, self._body)

    def reply(self, status: int, body: bytes = b"") -> None:
        """Answer the request. Does nothing if its sender has disconnected."""
        if self._socket.fileno() >= 0:
            head = b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            self._send(head + body)

    def _send(self, data: bytes) -> None:
        had_unsent = bool(self._unsent)
        data = self._unsent + data
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = data[sent:]
        if had_unsent or self._unsent:
            self._loop.watch(self._socket.fileno(), self._on_event, select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0))

    def close(self) -> None:
        """Close the connection, answered or not."""
        if self._socket.fileno() >= 0:
            self._loop.forget(self._socket.fileno())
            self._socket.close()


def request(method: str, url_path: str, host: bytes, *, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return (
        f"{method} {url_path} HTTP/1.1\r\nhost: ".encode()
        + host
        + f"\r\n{lines}content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
