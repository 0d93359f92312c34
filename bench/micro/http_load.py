"""The other side of `bench.micro.http`: plain epoll loops, cheaper than the subjects.

`python -m bench.micro.http_load PORT_DESCRIPTOR` answers requests on a listening socket, for the clients; the functions are the
load for the servers.
"""

import select
import socket
import sys
import time
from collections.abc import Callable, Iterable

from bench.micro.http_servers import ANSWER

REQUEST_BODY = b"y" * 200
REQUEST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 200\r\n\r\n" + REQUEST_BODY
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
_HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
START_SECONDS = 20.0
_READ_BYTES = 65_536


def connect(port: int, count: int) -> list[socket.socket]:
    """Open that many connections; the first one waits until the server is up."""
    give_up = time.monotonic() + START_SECONDS
    connected: list[socket.socket] = []
    while len(connected) < count:
        try:
            one = socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)  # the server is another process, which sends no event when it is up
            continue
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.append(one)
    return connected


def request_in_turn(connections: Iterable[socket.socket], requests: int) -> None:
    """Send that many requests in a closed loop: the next one on a connection after the previous was answered."""
    by_descriptor = {one.fileno(): one for one in connections}
    poller = select.epoll()
    for descriptor, one in by_descriptor.items():
        poller.register(descriptor, select.EPOLLIN)
        one.sendall(REQUEST)
    sent, answered = len(by_descriptor), 0
    while answered < requests:
        for descriptor, _ in poller.poll(START_SECONDS):
            one = by_descriptor[descriptor]
            received = one.recv(_READ_BYTES)
            if not received:
                raise ConnectionError("the server closed a connection")
            if not received.endswith(ANSWER):
                continue  # the head came alone
            answered += 1
            if sent < requests:
                one.sendall(REQUEST)
                sent += 1
    poller.close()


class Audience:
    """Websockets that listen; the first one stops reading on request."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._sockets = [self._join(receive_bytes=4_096 if number == 0 else None) for number in range(count)]
        self._poller = select.epoll()
        self._by_descriptor = {one.fileno(): one for one in self._sockets}
        for descriptor in self._by_descriptor:
            self._poller.register(descriptor, select.EPOLLIN)

    def __enter__(self) -> "Audience":
        return self

    def __exit__(self, *_: object) -> None:
        self._poller.close()
        for one in self._sockets:
            one.close()

    def stall(self) -> None:
        """Stop reading on the first one, and fill its buffers."""
        self._poller.unregister(self._sockets[0])
        del self._by_descriptor[self._sockets[0].fileno()]
        self._post("/stall", b"")

    def publish(self, text: bytes, events: int) -> float:
        """Publish an event that many times. Returns the longest time until all readers had one."""
        return max(self._publish_once(text) for _ in range(events))

    def say(self, text: bytes, events: int) -> float:
        """The same for a server that sends each client's message to all."""
        mask = b"\0\0\0\0"
        frame = b"\x81\xfe" + len(text).to_bytes(2, "big") + mask + text
        return max(self._publish_once(text, lambda: self._sockets[-1].sendall(frame)) for _ in range(events))

    def _publish_once(self, text: bytes, begin: Callable[[], object] | None = None) -> float:
        began = time.monotonic()
        missing = dict.fromkeys(self._by_descriptor, len(text) + 4)
        posted = self._begin_post("/", text) if begin is None else begin()
        while missing:
            for descriptor, _ in self._poller.poll(START_SECONDS):
                received = len(self._by_descriptor[descriptor].recv(_READ_BYTES))
                if not received:
                    raise ConnectionError("the server closed a websocket")
                missing[descriptor] -= received
                if not missing[descriptor]:
                    del missing[descriptor]
        took = time.monotonic() - began
        if isinstance(posted, socket.socket):
            _finish_post(posted)
        return took

    def _join(self, *, receive_bytes: int | None) -> socket.socket:
        one = socket.socket()
        one.settimeout(START_SECONDS)
        if receive_bytes is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        one.connect(("127.0.0.1", self._port))
        one.sendall(_HANDSHAKE)
        if not one.recv(_READ_BYTES).startswith(b"HTTP/1.1 101"):
            raise ConnectionError("the server refused a websocket")
        return one

    def _post(self, path: str, body: bytes) -> None:
        _finish_post(self._begin_post(path, body))

    def _begin_post(self, path: str, body: bytes) -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self._port), timeout=START_SECONDS)
        one.sendall(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body))
        return one


def _finish_post(one: socket.socket) -> None:
    with one:
        if not one.recv(_READ_BYTES).startswith(b"HTTP/1.1 200"):
            raise ConnectionError("the server did not publish")


def answer_for_ever(listening: socket.socket) -> None:
    """Answer every request on every connection, until killed."""
    poller = select.epoll()
    poller.register(listening.fileno(), select.EPOLLIN)
    by_descriptor: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in poller.poll():
            one = by_descriptor.get(descriptor)
            if one is None:
                peer, _ = listening.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                by_descriptor[peer.fileno()] = peer
                poller.register(peer.fileno(), select.EPOLLIN)
                continue
            received = one.recv(_READ_BYTES)
            if not received:
                poller.unregister(descriptor)
                by_descriptor.pop(descriptor).close()
            elif received.endswith(REQUEST_BODY):
                one.sendall(_RESPONSE)


if __name__ == "__main__":
    answer_for_ever(socket.socket(fileno=int(sys.argv[1])))
