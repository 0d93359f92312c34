"""The reader of `bench.micro.storm`: websockets that reconnect from where they were, within some seconds of their loss.

Its arguments are the address and the seconds over which reconnections are spread; its input is the number of sockets and a key
for each. Each order on its input is answered with a `State`; `list` resets the latencies. Every socket checks that no event is
missing or repeated.
"""

import os
import random
import select
import socket
import sys
import time
from datetime import datetime

import msgspec

from bench.generator.frames import TEXT, take_frame

_HEAD = (
    "GET /v1/stream?after={after} HTTP/1.1\r\nHost: florin\r\nAuthorization: Bearer {key}\r\nConnection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
OPENED_AT_ONCE = 200
RETRY_SECONDS = 0.5


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The state of all sockets. `gaps`: events that were missing or came twice; `refused`: handshakes that were answered with an
    error; `latencies_ms`: from an event's time to its frame, at even ranks.
    """

    open: int
    frames: int
    lost: int
    refused: int
    gaps: int
    latencies_ms: list[float]


class _Message(msgspec.Struct):
    seq: int
    timestamp: datetime | None = None
    recovered: bool | None = None


class _Socket:
    """One websocket, now and after it was lost."""

    __slots__ = ("after", "buffer", "connected", "is_open", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.after: int | None = None
        self.connected: socket.socket | None = None
        self.buffer = bytearray()
        self.is_open = False


class Reader:
    """All sockets, on one epoll."""

    def __init__(self, address: tuple[str, int], keys: list[str], *, spread_seconds: float) -> None:
        self._address = address
        self._spread_seconds = spread_seconds
        self._poll = select.epoll()
        self._by_descriptor: dict[int, _Socket] = {}
        now = time.monotonic()
        self._due = [(now + number / 2_000, _Socket(key)) for number, key in enumerate(keys)]
        self._latencies: list[float] = []
        self._open = self._frames = self._lost = self._refused = self._gaps = 0

    def run(self) -> None:
        """Serve orders until the input ends."""
        self._poll.register(0, select.EPOLLIN)
        while True:
            self._connect_due()
            for descriptor, _ in self._poll.poll(0.02):
                if descriptor == 0:
                    orders = os.read(0, 4_096)
                    if not orders:
                        return
                    sys.stdout.buffer.write(msgspec.json.encode(self._state()) + b"\n")
                    sys.stdout.flush()
                elif (one := self._by_descriptor.get(descriptor)) is not None:
                    self._read(one)

    def _state(self) -> State:
        latencies = sorted(self._latencies)
        self._latencies.clear()
        return State(
            open=self._open,
            frames=self._frames,
            lost=self._lost,
            refused=self._refused,
            gaps=self._gaps,
            latencies_ms=latencies[:: max(len(latencies) // 1_000, 1)],
        )

    def _connect_due(self) -> None:
        now = time.monotonic()
        due = [one for at, one in self._due if at <= now][:OPENED_AT_ONCE]
        chosen = set(map(id, due))
        self._due = [(at, one) for at, one in self._due if id(one) not in chosen]
        for one in due:
            try:
                connected = socket.create_connection(self._address, timeout=5)
            except OSError:
                self._due.append((now + RETRY_SECONDS, one))
                continue
            after = "" if one.after is None else one.after
            connected.sendall(_HEAD.format(after=after, key=one.key).replace("?after= ", " ").encode())
            connected.setblocking(False)  # noqa: FBT003 - the standard library's signature
            one.connected, one.buffer, one.is_open = connected, bytearray(), False
            self._by_descriptor[connected.fileno()] = one
            self._poll.register(connected, select.EPOLLIN)

    def _read(self, one: _Socket) -> None:
        assert one.connected is not None
        try:
            data = one.connected.recv(65_536)
        except ConnectionError:
            data = b""
        if not data:
            self._lose(one, random.uniform(0, self._spread_seconds))
            return
        one.buffer += data
        if not one.is_open and not self._shake_hands(one):
            return
        now = time.time()
        while frame := take_frame(one.buffer):
            if frame[0] == TEXT:
                self._hear(one, msgspec.json.decode(frame[1], type=_Message), now)

    def _shake_hands(self, one: _Socket) -> bool:
        head, separator, rest = bytes(one.buffer).partition(b"\r\n\r\n")
        if not separator:
            return False
        if not head.startswith(b"HTTP/1.1 101"):
            self._refused += 1
            self._lose(one, RETRY_SECONDS)
            return False
        one.buffer = bytearray(rest)
        one.is_open = True
        return True

    def _hear(self, one: _Socket, message: _Message, now: float) -> None:
        if message.recovered is not None:
            self._open += 1
            if one.after is not None and (message.seq != one.after or not message.recovered):
                self._gaps += 1
            one.after = message.seq
            return
        self._frames += 1
        self._gaps += message.seq != (one.after or 0) + 1
        one.after = message.seq
        assert message.timestamp is not None
        self._latencies.append((now - message.timestamp.timestamp()) * 1_000)

    def _lose(self, one: _Socket, seconds: float) -> None:
        assert one.connected is not None
        self._poll.unregister(one.connected)
        del self._by_descriptor[one.connected.fileno()]
        one.connected.close()
        if one.is_open:
            self._open -= 1
            self._lost += 1
        self._due.append((time.monotonic() + seconds, one))


if __name__ == "__main__":
    host, _, port = sys.argv[1].partition(":")
    wanted = [sys.stdin.readline().strip() for _ in range(int(sys.stdin.readline()))]
    Reader((host, int(port)), wanted, spread_seconds=float(sys.argv[2])).run()
