"""Sends the sandbox PSP's webhooks: signed, retried, and held back if a test asks for it."""

import time
from collections import deque
from typing import Any
from uuid import uuid4

import msgspec
import structlog
import trio

from core.signing import sign_timestamped
from server.http.client.client import Client
from server.http.client.errors import ClientError
from server.http.client.response import Response

QUEUE_MAX = 100_000
RECENT_MAX = 1_000
EVENTS_MAX = 50_000
RARE = ("refund.", "dispute.")
SENDERS = 32
RETRIES_MAX = 10_000
ATTEMPT_SECONDS = 10.0
RETRY_DELAYS_SECONDS = (0.2, 1.0, 3.0, 10.0, 30.0)
_log = structlog.get_logger()


class Webhooks:
    """A queue of events and the tasks that send them."""

    def __init__(self, http: Client, *, url: str, secret: str) -> None:
        self._http = http
        self.delay_seconds = 0.0
        self.copies = 1
        self._log: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._url = url
        self._secret = secret
        self._send, self._receive = trio.open_memory_channel[bytes](QUEUE_MAX)
        self._held: deque[bytes] = deque(maxlen=QUEUE_MAX)
        self._recent: deque[bytes] = deque(maxlen=RECENT_MAX)
        self.are_held = self.are_silent = False
        self.sent = 0

    def emit(self, event_type: str, intent: dict[str, Any]) -> None:
        """Send an event, at least once."""
        event = {"id": f"sbe_{uuid4().hex}", "type": event_type, "created": int(time.time()), "data": intent}
        self._log.append(event)
        if self.are_silent:
            return
        body = msgspec.json.encode(event)
        self._recent.append(body)
        if self.are_held:
            self._held.append(body)
            return
        for _ in range(self.copies):
            self._enqueue(body)

    def events(self, *, created_from: int, created_before: int, only_rare: bool, after: str, limit: int) -> list[dict[str, Any]]:
        """A page of the created events, sent or not, oldest first, behind the one of that id."""
        found: list[dict[str, Any]] = []
        is_after = not after
        for event in self._log:
            is_wanted = created_from <= event["created"] < created_before and (not only_rare or event["type"].startswith(RARE))
            if is_after and is_wanted:
                found.append(event)
                if len(found) == limit:
                    break
            is_after = is_after or event["id"] == after
        return found

    async def forge(self, count: int) -> dict[str, int]:
        """Send the last events as an attacker would: with a wrong secret, and with a valid but old signature. Returns the
        statuses.
        """
        statuses: dict[str, int] = {}
        for body in list(self._recent)[-count:]:
            old = int(time.time()) - 3_600
            for secret, timestamp in ((self._secret + "x", int(time.time())), (self._secret, old)):
                response = await self._post(body, sign_timestamped(secret, timestamp=timestamp, body=body))
                key = str(response.status)
                statuses[key] = statuses.get(key, 0) + 1
        return statuses

    def release(self, *, reverse: bool = False) -> None:
        """Send the held events, in order or reversed."""
        self.are_held = False
        while self._held:
            self._enqueue(self._held.pop() if reverse else self._held.popleft())

    def repeat(self, count: int) -> None:
        """Send the last events again with their ids, as PSPs do."""
        for body in list(self._recent)[-count:]:
            self._enqueue(body)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until canceled."""
        async with trio.open_nursery() as senders:
            for _ in range(SENDERS):
                senders.start_soon(self._send_forever, senders)
            task_status.started()

    def _enqueue(self, body: bytes) -> None:
        try:
            self._send.send_nowait(body)
        except trio.WouldBlock:
            _log.warning("the sandbox PSP drops a webhook: too many are waiting")

    async def _send_forever(self, nursery: trio.Nursery) -> None:
        async for body in self._receive:
            if self.delay_seconds:
                await trio.sleep(self.delay_seconds)
            if await self._deliver(body):
                continue
            if len(nursery.child_tasks) < RETRIES_MAX:
                nursery.start_soon(self._retry, body)
            else:
                _log.warning("the sandbox PSP gives up a webhook: too many are being retried")

    async def _retry(self, body: bytes) -> None:
        for delay in RETRY_DELAYS_SECONDS:
            await trio.sleep(delay)
            if await self._deliver(body):
                return
        _log.warning("the sandbox PSP gives up a webhook")

    async def _deliver(self, body: bytes) -> bool:
        signature = sign_timestamped(self._secret, timestamp=int(time.time()), body=body)
        with trio.move_on_after(ATTEMPT_SECONDS):
            try:
                response = await self._post(body, signature)
            except ClientError:
                return False
            self.sent += 1
            return 200 <= response.status < 300
        return False

    async def _post(self, body: bytes, signature: str) -> Response:
        headers = [("content-type", "application/json"), ("sandbox-signature", signature)]
        return await self._http.request("POST", self._url, headers=headers, body=body)
