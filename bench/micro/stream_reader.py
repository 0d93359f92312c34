"""The reader of `bench.micro.stream`: thousands of websockets in one process, on bare sockets, because a library would cost more
than what is measured. It records the id of each event and when it was read.

Its input is the number of sockets and a key for each; it writes `open`, and then answers `count` and `list`.
"""

import os
import re
import select
import socket
import sys
import time

from bench.generator.frames import SHORT_MAX, TEXT, take_frame

_HEAD = (
    "GET /v1/stream HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_ID = re.compile(rb'"id":"(evt_[0-9a-f]{32})"')


def main() -> None:
    """Read until the input ends."""
    host = sys.argv[1]
    count = int(sys.stdin.readline())
    opened = [_open(host, sys.stdin.readline().strip()) for _ in range(count)]
    poll = select.epoll()
    buffers: dict[int, bytearray] = {}
    sockets = {one.fileno(): one for one in opened}
    for one in opened:
        poll.register(one, select.EPOLLIN)
        buffers[one.fileno()] = bytearray()
    poll.register(0, select.EPOLLIN)
    print("open", flush=True)
    heard: list[tuple[bytes, float]] = []
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == 0:
                if not _answer(heard):
                    return
                continue
            data = sockets[descriptor].recv(65_536)
            now = time.monotonic()
            if not data:
                sys.exit("a socket was closed")
            buffer = buffers[descriptor]
            buffer += data
            while frame := take_frame(buffer):
                found = _ID.search(frame[1]) if frame[0] == TEXT else None
                if found:
                    heard.append((found[1], now))


def _open(host: str, key: str) -> socket.socket:
    address, _, port = host.partition(":")
    one = socket.create_connection((address, int(port)), timeout=30)
    one.sendall(_HEAD.format(host=host, key=key).encode())
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < SHORT_MAX // 2:  # the first frame follows
        data += one.recv(4_096)
        if not data.startswith(b"HTTP/1.1 101"):
            sys.exit(data.decode("latin-1"))
    one.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return one


def _answer(heard: list[tuple[bytes, float]]) -> bool:
    asked = os.read(0, 65_536)
    for line in asked.splitlines():
        print(len(heard))
        if line == b"list":
            print("".join(f"{event_id.decode()} {moment:.6f}\n" for event_id, moment in heard), end="")
        sys.stdout.flush()
    return bool(asked)


if __name__ == "__main__":
    main()
