"""`python -m bench.generator.psp_stub DESCRIPTOR`: a PSP that costs next to nothing, so that the PSP is not what is measured.

It implements the part of the sandbox PSP's API that a charge needs: `POST /v1/intents` captures, once for each idempotency key,
after the latency that `POST /control` sets, or drops every connection while that says `down`; the intent can be fetched and
listed. It sends no webhooks. The last `KEPT_MAX` intents are kept.
"""

import socket
import sys
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from bench.generator.http import Served, listen
from bench.generator.loop import Loop

KEPT_MAX = 200_000


class Stub:
    """The PSP."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._latency_seconds = 0.0
        self._by_operation: dict[str, bytes] = {}
        self._number = 0
        self.is_down = False

    def answer(self, served: Served, method: bytes, target: bytes, body: bytes) -> None:
        """Answer one request."""
        if target == b"/v1/intents" and not self.is_down and method == b"POST":
            intent = self._charge(msgspec.json.decode(body))
            if self._latency_seconds:
                self._loop.call_at(self._loop.now + self._latency_seconds, lambda: served.reply(200, intent))
            else:
                served.reply(200, intent)
        elif target == b"/control":
            wanted = msgspec.json.decode(body)
            self.is_down = wanted.get("down", self.is_down)
            if "latency" in wanted:
                self._latency_seconds = wanted["latency"]["seconds"] if wanted["latency"] else 0.0
            served.reply(200, b"{}")
        elif self.is_down:
            served.close()
        elif method == b"GET":
            self._find(served, target.decode())
        else:
            served.reply(404, b"{}")

    def _charge(self, wanted: Any) -> bytes:
        operation = wanted["operation_id"]
        known = self._by_operation.get(operation)
        if known is not None:
            return known
        self._number += 1
        if len(self._by_operation) >= KEPT_MAX:
            del self._by_operation[next(iter(self._by_operation))]
        found = self._by_operation[operation] = msgspec.json.encode(
            {
                "id": f"pi_{self._number}_{operation.replace('-', '')}",
                "status": "captured",
                "amount_minor": wanted["amount_minor"],
                "currency": wanted["currency"],
                "payment_url": "",
                "merchant_id": wanted["merchant_id"],
                "payment_id": wanted["payment_id"],
                "operation_id": operation,
                "created": int(time.time()),
                "captured_minor": wanted["amount_minor"],
            }
        )
        return found

    def _find(self, served: Served, target: str) -> None:
        parts = urlsplit(target)
        if parts.path == "/v1/intents":
            operation = parse_qs(parts.query).get("operation_id", [""])[0]
            found = self._by_operation.get(operation)
            served.reply(200, b'{"data":[' + (found or b"") + b"]}")
        elif parts.path == "/v1/events":
            served.reply(200, b'{"data":[],"has_more":false}')
        else:
            text = parts.path.rpartition("_")[2]
            operation = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
            found = self._by_operation.get(operation)
            served.reply(200 if found else 404, found or b"{}")


if __name__ == "__main__":
    loop = Loop()
    listen(loop, socket.socket(fileno=int(sys.argv[1])), Stub(loop).answer)
    loop.run()
