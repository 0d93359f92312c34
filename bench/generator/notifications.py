"""The merchant's side of notifications: webhooks and websocket streams, counted and matched with the journeys that wait for them.

Signatures are not verified here and frames are parsed by hand: libraries for both are used elsewhere, and here they would cost
the generator more than the load does.
"""

import re
import select
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from bench.generator.frames import TEXT, take_frame
from bench.generator.http import READ_BYTES, Served, listen
from bench.generator.loop import Loop

EARLY_MAX = 100_000
_PING, _PONG, _MASK = 0x89, 0x8A, bytes(4)
_PAYMENT = re.compile(rb'"type":"payment\.(?:succeeded|authorized)".*?"id":"(pay_[0-9a-f]+)"', re.DOTALL)
_HANDSHAKE = (
    "GET /v1/stream HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
Told = Callable[[], None]


class Notifications:
    """Receives notifications of payments. One that arrives before anybody waits for it is kept."""

    def __init__(self, loop: Loop, listening: socket.socket | None) -> None:
        self.told = 0
        self.channels = 0
        self._loop = loop
        self._heard: dict[str, int] = {}
        self._waiting: dict[str, Told] = {}
        self._sockets: list[socket.socket] = []
        self._opened_for: set[str] = set()
        self.sockets_per_key = 0
        if listening is not None:
            listen(loop, listening, self._on_webhook)

    def open_streams(self, url: str, keys: list[str], *, sockets: int = 0) -> None:
        """Open websockets, once: one for each key, or the requested number, evenly."""
        self.sockets_per_key = max(sockets // len(keys), 1)
        if url in self._opened_for:
            return
        self._opened_for.add(url)
        parts = urlsplit(url)
        for key in [key for key in keys for _ in range(self.sockets_per_key)]:
            one = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10)
            one.sendall(_HANDSHAKE.format(host=parts.netloc, key=key).encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += one.recv(1) or b"\r\n\r\n"
            if not head.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(f"the stream was refused: {head[:60]!r}")
            self._sockets.append(one)
            self._read_stream(one)

    def wait(self, payment_id: str, told: Told) -> None:
        """Call back once every channel has reported the payment."""
        if self._heard.get(payment_id, 0) >= self.channels:
            del self._heard[payment_id]
            told()
        else:
            self._waiting[payment_id] = told

    def forget(self) -> None:
        """Stop waiting for a payment."""
        self._waiting.clear()
        self._heard.clear()

    def _hear(self, body: bytes) -> None:
        found = _PAYMENT.search(body)
        if found is None or not self.channels:
            return
        payment_id = found[1].decode()
        heard = self._heard[payment_id] = self._heard.get(payment_id, 0) + 1
        if heard >= self.channels and payment_id in self._waiting:
            del self._heard[payment_id]
            self._waiting.pop(payment_id)()
        elif len(self._heard) > EARLY_MAX:
            del self._heard[next(iter(self._heard))]

    def _on_webhook(self, served: Served, _method: bytes, _target: bytes, body: bytes) -> None:
        served.reply(200)
        self.told += 1
        self._hear(body)

    def _read_stream(self, one: socket.socket) -> None:
        buffer = bytearray()

        def read(_: int) -> None:
            try:
                received = one.recv(READ_BYTES)
            except OSError:
                received = b""
            if not received:  # dropped ones end in timeouts, which are counted
                self._loop.forget(one.fileno())
                one.close()
                return
            buffer.extend(received)
            while (frame := take_frame(buffer)) is not None:
                kind, payload = frame
                if kind == TEXT:
                    self._hear(payload)
                elif kind == _PING:
                    one.sendall(bytes((_PONG, 0x80 | len(payload))) + _MASK + payload)

        self._loop.watch(one.fileno(), read, select.EPOLLIN)
