"""Sends the sandbox PSP's webhooks: signed, retried, and held back where a test asks for it."""

import time
from collections import deque
from typing import Any
from uuid import uuid4

import msgspec
import structlog
import trio

from core.signing import sign_timestamped
from server.http.client import Client
from server.http.errors import ClientError

QUEUE_MAX = 100_000
RECENT_MAX = 1_000
SENDERS = 32
RETRIES_MAX = 10_000
ATTEMPT_SECONDS = 10.0
RETRY_DELAYS_SECONDS = (0.2, 1.0, 3.0, 10.0, 30.0)
_log = structlog.get_logger()


class Webhooks:
    """A queue of events and the tasks that send them."""

    def __init__(self, http: Client, *, url: str, secret: str) -> None:
        self._http = http
        self._url = url
        self._secret = secret
        self._send, self._receive = trio.open_memory_channel[bytes](QUEUE_MAX)
        self._held: deque[bytes] = deque(maxlen=QUEUE_MAX)
        self._recent: deque[bytes] = deque(maxlen=RECENT_MAX)
        self.are_held = False
        self.sent = 0

    def emit(self, event_type: str, intent: dict[str, Any]) -> None:
        """Send an event, at least once."""
        event = {"id": f"sbe_{uuid4().hex}", "type": event_type, "created": int(time.time()), "data": intent}
        body = msgspec.json.encode(event)
        self._recent.append(body)
        if self.are_held:
            self._held.append(body)
        else:
            self._enqueue(body)

    def release(self, *, reverse: bool = False) -> None:
        """Send what was held back, in order or the last one first."""
        self.are_held = False
        while self._held:
            self._enqueue(self._held.pop() if reverse else self._held.popleft())

    def repeat(self, count: int) -> None:
        """Send the last events again, under their own ids, as PSPs do."""
        for body in list(self._recent)[-count:]:
            self._enqueue(body)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as senders:
            for _ in range(SENDERS):
                senders.start_soon(self._send_forever, senders)
            task_status.started()

    def _enqueue(self, body: bytes) -> None:
        try:
            self._send.send_nowait(body)
        except trio.WouldBlock:
            _log.warning("the sandbox PSP drops a webhook: too many wait")

    async def _send_forever(self, nursery: trio.Nursery) -> None:
        async for body in self._receive:
            if await self._deliver(body):
                continue
            if len(nursery.child_tasks) < RETRIES_MAX:
                nursery.start_soon(self._retry, body)
            else:
                _log.warning("the sandbox PSP gives a webhook up: too many are retried")

    async def _retry(self, body: bytes) -> None:
        for delay in RETRY_DELAYS_SECONDS:
            await trio.sleep(delay)
            if await self._deliver(body):
                return
        _log.warning("the sandbox PSP gives a webhook up")

    async def _deliver(self, body: bytes) -> bool:
        signature = sign_timestamped(self._secret, timestamp=int(time.time()), body=body)
        headers = [("content-type", "application/json"), ("sandbox-signature", signature)]
        with trio.move_on_after(ATTEMPT_SECONDS):
            try:
                response = await self._http.request("POST", self._url, headers=headers, body=body)
            except ClientError:
                return False
            self.sent += 1
            return 200 <= response.status < 300
        return False
