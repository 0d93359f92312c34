"""The other side of what `bench.wire` measures: plain epoll loops, cheaper than anything that they measure.

`python -m bench.wire_load PORT_DESCRIPTOR` answers requests on a listening socket, for the clients; the functions are the load
that servers are given.
"""

import select
import socket
import sys
import time
from collections.abc import Iterable

from bench.wire_servers import ANSWER

REQUEST_BODY = b"y" * 200
REQUEST = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 200\r\n\r\n" + REQUEST_BODY
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
START_SECONDS = 20.0
_READ_BYTES = 65_536


def connect(port: int, count: int) -> list[socket.socket]:
    """So many connections; the first one waits until the server is there."""
    give_up = time.monotonic() + START_SECONDS
    connected: list[socket.socket] = []
    while len(connected) < count:
        try:
            one = socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)
            continue
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.append(one)
    return connected


def request_in_turn(connections: Iterable[socket.socket], requests: int) -> None:
    """Send so many requests, closed loop: the next on a connection when the last has been answered."""
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
