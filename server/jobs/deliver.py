"""Sends events to merchants' webhook endpoints.

What this worker committed arrives through `notify` and is sent within milliseconds; what is due otherwise (a retry, a dead
worker's deliveries) is claimed from the table. Invariants: at most `IN_FLIGHT_MAX` attempts run, of one endpoint fewer, and at
most `QUEUE_MAX` wait in memory, the rest waits in the table; an attempt ends well inside its lease; its result is committed in
a group; whatever goes wrong with one delivery is that delivery's failure and nobody else's.
"""

import random
import time
from collections import OrderedDict, deque
from collections.abc import Sequence

import msgspec
import structlog
import trio

from core.errors import DatabaseUnavailable, FlorinError, Overloaded
from core.ids import EVENT, EndpointId, MerchantId, encode_id
from core.retry import DELIVERY_DELAYS_SECONDS, next_attempt_at
from core.signing import sign_standard
from server.db.change_batch import NewDelivery
from server.db.database import Database
from server.db.deliveries import (
    ClaimedDelivery,
    DeliveryResult,
    claim_due_deliveries,
    merchants_with_due_deliveries,
)
from server.db.merchants import find_endpoint
from server.flows.services import utc_now
from server.http.client import Client
from server.http.errors import ClientError
from server.sealing import Sealer

IN_FLIGHT_MAX = 128
IN_FLIGHT_PER_ENDPOINT_MAX = 32
QUEUE_MAX = 4_096
CLAIM_MAX = IN_FLIGHT_PER_ENDPOINT_MAX
BUSY = IN_FLIGHT_PER_ENDPOINT_MAX // 2
"""With so many attempts under way to an endpoint nothing more is claimed for it: it would only wait and age."""

ENDPOINT_CACHE_SECONDS = 2.0
ENDPOINT_CACHE_MAX = 10_000
API_VERSION = "2026-11-01"
_log = structlog.get_logger()


class _Target(msgspec.Struct, frozen=True):
    url: str
    secret: str
    fetched_at: float


class _Lane(msgspec.Struct):
    """What goes to one endpoint: so many attempts run, the rest waits with the time at which its claim is too old."""

    running: int = 0
    waiting: deque[tuple[ClaimedDelivery, float]] = msgspec.field(default_factory=deque)


class Deliverer:
    """The job and its queues."""

    def __init__(
        self,
        db: Database,
        http: Client,
        sealer: Sealer,
        *,
        attempt_seconds: float,
        lease_seconds: float,
        sweep_seconds: float,
    ) -> None:
        self._db = db
        self._http = http
        self._sealer = sealer
        self._attempt_seconds = attempt_seconds
        self._lease_seconds = lease_seconds
        self._sweep_seconds = sweep_seconds
        self._send, self._receive = trio.open_memory_channel[tuple[ClaimedDelivery, float]](QUEUE_MAX)
        self._running = 0
        self._lanes: OrderedDict[EndpointId, _Lane] = OrderedDict()
        self._waiting = 0
        self._targets: dict[EndpointId, _Target] = {}

    def notify(self, deliveries: Sequence[NewDelivery]) -> None:
        """Take over what was just committed. What does not fit is recovered from the table when its lease ends."""
        for delivery in deliveries:
            try:
                self._send.send_nowait((ClaimedDelivery(delivery, attempt=1), self._too_old_at()))
            except trio.WouldBlock:
                return

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled."""
        async with trio.open_nursery() as attempts:
            attempts.start_soon(self._sweep_forever)
            task_status.started()
            async for claimed, too_old_at in self._receive:
                if self._waiting >= QUEUE_MAX:
                    continue
                lane = self._lanes.setdefault(claimed.message.endpoint_id, _Lane())
                lane.waiting.append((claimed, too_old_at))
                self._waiting += 1
                if self._running < IN_FLIGHT_MAX and (following := self._next()):
                    self._running += 1
                    attempts.start_soon(self._work, *following)

    def _too_old_at(self) -> float:
        """When an attempt could no longer end before the lease of a claim made now."""
        return trio.current_time() + self._lease_seconds - self._attempt_seconds

    def _next(self) -> tuple[_Lane, ClaimedDelivery, float] | None:
        """What to attempt next: the endpoints take turns, and none has more than its share under way."""
        for endpoint_id, lane in self._lanes.items():
            if lane.waiting and lane.running < IN_FLIGHT_PER_ENDPOINT_MAX:
                self._lanes.move_to_end(endpoint_id)
                lane.running += 1
                self._waiting -= 1
                return lane, *lane.waiting.popleft()
        return None

    async def _work(self, lane: _Lane, claimed: ClaimedDelivery, too_old_at: float) -> None:
        """Attempt one delivery after the other until none can be attempted now."""
        following: tuple[_Lane, ClaimedDelivery, float] | None = (lane, claimed, too_old_at)
        while following is not None:
            lane, claimed, too_old_at = following
            await self._attempt(claimed, too_old_at)
            lane.running -= 1
            if not lane.running and not lane.waiting:
                self._lanes.pop(claimed.message.endpoint_id, None)
            following = self._next()
        self._running -= 1

    async def _sweep_forever(self) -> None:
        while True:
            try:
                found = await self._sweep()
            except (DatabaseUnavailable, Overloaded) as error:
                _log.warning("cannot look for due deliveries", error=str(error))
                found = 0
            if not found:
                await trio.sleep(self._sweep_seconds)

    async def _sweep(self) -> int:
        """Claim no more than there is room for, so that a claim does not age in the queue."""
        room = min(CLAIM_MAX, IN_FLIGHT_MAX - self._running)
        if room <= 0 or self._send.statistics().current_buffer_used:
            return 0
        busy = [endpoint_id for endpoint_id, lane in self._lanes.items() if lane.waiting or lane.running >= BUSY]
        claims: list[ClaimedDelivery] = []
        too_old_at = self._too_old_at()
        async with self._db.pool.connection() as connection:
            for merchant_id in await merchants_with_due_deliveries(connection, but_not_to=busy, limit=room):
                claims += await claim_due_deliveries(
                    connection,
                    merchant_id,
                    but_not_to=busy,
                    limit=room - len(claims),
                    lease_seconds=self._lease_seconds,
                )
                if len(claims) >= room:
                    break
        for claim in claims:  # what was committed meanwhile may have filled the queue, so this may have to wait
            await self._send.send((claim, too_old_at))
        return len(claims)

    async def _attempt(self, claimed: ClaimedDelivery, too_old_at: float) -> None:
        """One attempt and its result. Whatever goes wrong is this delivery's failure and nobody else's."""
        try:
            if trio.current_time() < too_old_at:
                result = await self._deliver(claimed)
            else:
                result = DeliveryResult(claimed=claimed, delivered=False, retry_seconds=self._sweep_seconds, made=False)
        except Exception as error:  # noqa: BLE001 - a message that breaks its sender must use up its attempts, not its worker
            _log.exception("a delivery failed in an unexpected way", event_id=str(claimed.message.event_id))
            result = _failed(claimed, error=f"{type(error).__name__} while sending")
        try:
            await self._db.delivery_results.submit(result)
        except FlorinError as error:
            _log.warning("a delivery's result could not be written; it will be repeated", error=str(error))

    async def _deliver(self, claimed: ClaimedDelivery) -> DeliveryResult:
        message = claimed.message
        target = await self._target(message.merchant_id, message.endpoint_id)
        if target is None:
            return DeliveryResult(claimed=claimed, delivered=False, error="the endpoint is disabled")
        body = render(message)
        try:
            with trio.fail_after(self._attempt_seconds):
                headers = _headers(message, target, body)
                # The merchant tells repetitions by the message's id.
                response = await self._http.request("POST", target.url, headers=headers, body=body, idempotent=True)
        except (ClientError, trio.TooSlowError) as error:
            return _failed(claimed, error=str(error) or f"no answer within {self._attempt_seconds:g} s")
        if 200 <= response.status < 300:
            return DeliveryResult(claimed=claimed, delivered=True, status=response.status)
        return _failed(claimed, status=response.status, error=f"the endpoint answered {response.status}")

    async def _target(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> _Target | None:
        """Where to send and the secret to sign with, remembered for a moment."""
        target = self._targets.get(endpoint_id)
        if target is not None and trio.current_time() - target.fetched_at < ENDPOINT_CACHE_SECONDS:
            return target
        async with self._db.pool.connection() as connection:
            endpoint = await find_endpoint(connection, merchant_id, endpoint_id)
        self._targets.pop(endpoint_id, None)
        if endpoint is None or not endpoint.enabled:
            return None
        secret = self._sealer.open(endpoint.sealed_secret, table="webhook_endpoints", row=endpoint_id, merchant=merchant_id)
        if len(self._targets) >= ENDPOINT_CACHE_MAX:
            self._targets.clear()
        target = self._targets[endpoint_id] = _Target(endpoint.url, secret, trio.current_time())
        return target


def render(message: NewDelivery) -> bytes:
    """The body of a notification: the envelope around the payment as it was when the event happened."""
    head = {
        "id": encode_id(EVENT, message.event_id),
        "type": message.event_type,
        "seq": message.event_seq,
        "api_version": API_VERSION,
        "timestamp": message.created_at,
        "data": msgspec.Raw(message.event_data),
    }
    return msgspec.json.encode(head)


def _headers(message: NewDelivery, target: _Target, body: bytes) -> list[tuple[str, str]]:
    message_id = encode_id(EVENT, message.event_id)
    timestamp = int(time.time())
    signature = sign_standard([target.secret], message_id=message_id, timestamp=timestamp, body=body)
    return [
        ("content-type", "application/json"),
        ("user-agent", "Florin-Webhooks/1"),
        ("webhook-id", message_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", signature),
    ]


def _failed(claimed: ClaimedDelivery, *, error: str, status: int | None = None) -> DeliveryResult:
    now = utc_now()
    jitter = random.random()  # noqa: S311 - spreads load, guards nothing
    at = next_attempt_at(DELIVERY_DELAYS_SECONDS, attempts=claimed.attempt, now=now, jitter=jitter)
    retry_seconds = (at - now).total_seconds() if at else None
    return DeliveryResult(claimed=claimed, delivered=False, retry_seconds=retry_seconds, status=status, error=error[:500])
