"""Sends events to merchants' webhook endpoints.

Deliveries that this worker commits arrive through `notify` and are sent within milliseconds. Other due ones (retries, a dead
worker's deliveries) are claimed from the table, endpoint by endpoint. Invariants:

- At most `IN_FLIGHT_MAX` attempts run or have a result that is not yet written. At most `SUSPECT_IN_FLIGHT_MAX` of them go to
  endpoints that do not answer, so that there is always room for the others. At most `QUEUE_MAX` wait in memory. Excess deliveries
  stay in the table and are claimed later, and none is claimed for an endpoint that takes nothing at the moment.
- A claim that cannot be attempted soon is released without counting an attempt.
- An attempt ends well inside its lease, and its result is written in a group: a failure at once, a success within a fraction of
  a second; until then it is in memory only, and what a killed worker had delivered is delivered again.
- Attempts are made by tasks that are kept for the next one, because starting a task costs as much as half a delivery.
- Each ordered endpoint has a task of its own, in the worker that holds it (`server.jobs.webhooks.ordered`).
"""

from collections.abc import Callable, Sequence
from uuid import UUID

import structlog
import trio

from core.breaker import Admission
from core.errors import DatabaseUnavailable, Overloaded
from core.ids import EndpointId, MerchantId
from server.concurrency.kept_tasks import KeptTasks
from server.concurrency.worker_count import WorkerCount
from server.db.database import Database
from server.db.payments.changes import Applied
from server.db.webhooks.deliveries import (
    ClaimedDelivery,
    WaitingEndpoint,
    claim_due_deliveries,
    endpoints_with_deliveries,
    give_up_deliveries,
)
from server.flows.webhooks.send import Destination, NotMade, Sender
from server.jobs.webhooks.endpoint_queue import EndpointQueue, Timing
from server.jobs.webhooks.ordered import MARGIN, OrderedEndpoints
from server.jobs.webhooks.returned_claims import ReturnedClaims
from server.telemetry import Metrics

IN_FLIGHT_MAX = 2_048
SUSPECT_IN_FLIGHT_MAX = 1_024
QUEUE_MAX = 8_192
WAITING_PER_ENDPOINT_MAX = 512
CLAIM_MAX = 128
GIVE_UP_MAX = 1_000
SCAN_MAX = 1_000
CLAIMS_PER_SWEEP_MAX = 64
ENDPOINT_QUEUES_MAX = 10_000
TICK_SECONDS = 0.02
SENDERS_KEPT_MAX = 256
SUSPECT_SECONDS = 1.0
"""The delay until deliveries of an endpoint that did not answer may be claimed again."""
_START = (UUID(int=0), UUID(int=0))
_Attempt = tuple[EndpointQueue, ClaimedDelivery, float, Admission, bool]
_log = structlog.get_logger()


class Deliverer:
    """The job, with a queue per endpoint."""

    def __init__(
        self,
        db: Database,
        sender: Sender,
        metrics: Metrics,
        workers: WorkerCount,
        timing: Timing,
        *,
        may_be_due: Callable[[], bool] = lambda: True,
    ) -> None:
        self._may_be_due = may_be_due
        self._db = db
        self._sender = sender
        self._metrics = metrics
        self._workers = workers
        self._timing = timing
        self._nursery: trio.Nursery | None = None
        self._queues: dict[EndpointId, EndpointQueue] = {}
        self._running = self._suspects_running = self._waiting = 0
        self._blocked: set[EndpointQueue] = set()
        """Queues whose next delivery could not begin: because of their rate, or of too many attempts under way."""
        self._wants_claims: set[EndpointQueue] = set()
        """Queues that could take more than was claimed for them."""
        self._ordered = OrderedEndpoints(db, sender, metrics, lease_seconds=timing.lease_seconds)
        self._returned = ReturnedClaims(db.pool)
        self._is_wanted, self._is_blocked = trio.Event(), trio.Event()
        self._attempts = KeptTasks(self._attempt, kept_max=SENDERS_KEPT_MAX)
        self._forgot_at = float("-inf")
        self._swept = {False: _START, True: _START}
        self._kinds_left = [False, True]
        self.sweeps = 0
        """The number of polls of the table, complete or partial."""

    def notify(self, applied: Applied) -> None:
        """Queue deliveries that were just committed. Excess deliveries stay in the table and are claimed later."""
        if applied.event is None or self._nursery is None:
            return
        now = trio.current_time()
        for target in applied.targets:
            if target.is_ordered:
                self._ordered.want(applied.event.merchant_id, target.endpoint_id)
            else:
                self._take(ClaimedDelivery(applied.event, target.endpoint_id, attempt=1), self._too_old_at(now), now)

    def is_idle(self) -> bool:
        """Return whether nothing is queued or under way."""
        is_written = self._db.delivery_results.is_idle
        return is_written and self._ordered.is_idle and self._returned.is_empty and not (self._running or self._waiting)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until canceled."""
        async with trio.open_nursery() as nursery:
            self._nursery = self._attempts.nursery = self._ordered.nursery = nursery
            nursery.start_soon(self._sweep_forever)
            nursery.start_soon(self._tick_forever)
            nursery.start_soon(self._returned.run)
            task_status.started()

    # Claims that this worker holds

    def _too_old_at(self, now: float) -> float:
        """The time at which an attempt could no longer end, and be written, before the lease of a claim made now."""
        return now + self._timing.lease_seconds - (1 + MARGIN) * self._sender.attempt_seconds

    def _take(self, claimed: ClaimedDelivery, too_old_at: float, now: float) -> None:
        queue = self._queues.get(claimed.endpoint_id) or self._queue(claimed.event.merchant_id, claimed.endpoint_id)
        if not queue.waiting and self._has_room(queue) and queue.may_start(now=now):
            self._begin(queue, claimed, too_old_at, now)
            return
        held_seconds = queue.held_seconds(now=now)
        if held_seconds or not self._may_wait(queue):
            self._returned.add(claimed, held_seconds or self._timing.sweep_seconds)
            return
        queue.waiting.append((claimed, too_old_at))
        self._waiting += 1
        self._start(queue)

    def _may_wait(self, queue: EndpointQueue) -> bool:
        """Return whether one more delivery may wait for an endpoint; few may if many wait already."""
        share = WAITING_PER_ENDPOINT_MAX if self._waiting < QUEUE_MAX // 2 else WAITING_PER_ENDPOINT_MAX // 16
        return self._waiting < QUEUE_MAX and len(queue.waiting) < share

    def _queue(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> EndpointQueue:
        queue = self._queues.get(endpoint_id)
        if queue is None:
            if len(self._queues) >= ENDPOINT_QUEUES_MAX and trio.current_time() - self._forgot_at > 1.0:
                self._forget_queues()
            queue = self._queues[endpoint_id] = EndpointQueue(merchant_id, endpoint_id)
            if destination := self._sender.known(merchant_id, endpoint_id):
                queue.configure(destination.endpoint, workers=self._workers)
        return queue

    def _forget_queues(self) -> None:
        now = self._forgot_at = trio.current_time()
        for is_held_too in (False, True):
            for endpoint_id, queue in list(self._queues.items()):
                if queue.is_at_rest(now=now) or (is_held_too and not queue.running and not queue.waiting):
                    del self._queues[endpoint_id]
            if len(self._queues) < ENDPOINT_QUEUES_MAX:
                return

    def _start(self, queue: EndpointQueue) -> None:
        """Begin as many attempts as possible."""
        while queue.waiting:
            now = trio.current_time()
            if now >= queue.waiting[0][1]:  # it would use up a slot of the rate, and not be sent
                self._waiting -= 1
                self._returned.add(queue.waiting.popleft()[0], self._timing.sweep_seconds)
                continue
            if not self._has_room(queue) or not queue.may_start(now=now):
                self._blocked.add(queue)
                self._is_blocked.set()
                return
            claimed, too_old_at = queue.waiting.popleft()
            self._waiting -= 1
            self._begin(queue, claimed, too_old_at, now)
        if self._blocked:
            self._blocked.discard(queue)

    def _begin(self, queue: EndpointQueue, claimed: ClaimedDelivery, too_old_at: float, now: float) -> None:
        """Hand an attempt to a task that is free."""
        admission = queue.start(now=now)
        self._running += 1
        self._suspects_running += queue.is_suspect
        self._attempts.begin((queue, claimed, too_old_at, admission, queue.is_suspect))

    def _want_more(self, queue: EndpointQueue) -> None:
        """Claim more for a queue before it runs out of work."""
        if queue.has_more and len(queue.waiting) <= queue.limit:
            self._wants_claims.add(queue)
            self._is_wanted.set()

    def _has_room(self, queue: EndpointQueue) -> bool:
        if queue.is_suspect and self._suspects_running >= SUSPECT_IN_FLIGHT_MAX:
            return False
        return self._running + self._db.delivery_results.waiting < IN_FLIGHT_MAX

    async def _attempt(self, attempt: _Attempt) -> None:
        queue, claimed, too_old_at, admission, was_suspect = attempt
        if not queue.is_configured and await self._has_rate(queue):
            queue.withdraw(admission)
            self._running -= 1
            queue.waiting.appendleft((claimed, too_old_at))
            self._waiting += 1
            self._start(queue)
            return
        began = now = trio.current_time()
        attempted = await self._sender.attempt(claimed, too_old_at=too_old_at, now=began)
        if isinstance(attempted, NotMade):
            queue.withdraw(admission)
            self._returned.add(claimed, self._timing.sweep_seconds)
        else:
            now, result = trio.current_time(), attempted.result
            queue.end(
                admission,
                delivered=result.delivered,
                was_slow=attempted.was_slow,
                took_seconds=now - began,
                wait_seconds=attempted.wait_seconds,
                now=now,
            )
            self._metrics.webhook_attempted(result.status, delivered=result.delivered)
            if attempted.endpoint is not None:
                queue.configure(attempted.endpoint, workers=self._workers)
            elif destination := self._sender.known(queue.merchant_id, queue.endpoint_id):
                queue.configure(destination.endpoint, workers=self._workers)
            try:
                self._db.delivery_results.deposit(result, at_once=not result.delivered)
            except Overloaded as error:
                _log.warning("a delivery's result could not be written; it will be repeated", error=str(error))
        self._running -= 1
        self._suspects_running -= was_suspect
        held_seconds = queue.held_seconds(now=now)
        if held_seconds or queue.is_suspect:
            self._empty(queue, held_seconds or SUSPECT_SECONDS)
        self._start(queue)
        if queue.has_more:
            self._want_more(queue)

    async def _has_rate(self, queue: EndpointQueue) -> bool:
        """Learn the settings of an endpoint that is new to this worker. Returns whether its attempts have to wait for a rate."""
        try:
            destination = await self._sender.destination(queue.merchant_id, queue.endpoint_id)
        except Exception:  # noqa: BLE001 - the attempt meets it again, and records it
            return False
        if isinstance(destination, Destination):
            queue.configure(destination.endpoint, workers=self._workers)
        return queue.has_rate

    def _empty(self, queue: EndpointQueue, held_seconds: float) -> None:
        """Release the waiting claims of an endpoint to which nothing may be sent for a while."""
        self._waiting -= len(queue.waiting)
        while queue.waiting:
            self._returned.add(queue.waiting.popleft()[0], held_seconds)

    # What goes on all the time

    async def _tick_forever(self) -> None:
        """Begin attempts that had to wait for their rate or for room."""
        while True:
            await self._is_blocked.wait()
            await trio.sleep(TICK_SECONDS)
            if not self._blocked:
                self._is_blocked = trio.Event()
            for queue in list(self._blocked):
                if held_seconds := queue.held_seconds(now=trio.current_time()):
                    self._empty(queue, held_seconds)
                self._start(queue)
                self._want_more(queue)

    async def _sweep_forever(self) -> None:
        sweep_at = trio.current_time() + self._timing.sweep_seconds
        while True:
            with trio.move_on_at(sweep_at):
                await self._is_wanted.wait()
            self._is_wanted = trio.Event()
            try:
                await self._claim_more()
                if trio.current_time() >= sweep_at:
                    is_through = not self._may_be_due() or await self._sweep()
                    sweep_at = trio.current_time() + (self._timing.sweep_seconds if is_through else TICK_SECONDS)
            except (DatabaseUnavailable, Overloaded) as error:
                _log.warning("cannot look for due deliveries", error=str(error))
                await trio.sleep(self._timing.sweep_seconds)

    async def _claim_more(self) -> None:
        """Claim more for queues that have handled what was claimed for them."""
        hungry, self._wants_claims = self._wants_claims, set()
        for queue in hungry:
            await self._claim(queue.merchant_id, queue.endpoint_id)

    async def _sweep(self) -> bool:
        """Find endpoints with due deliveries, a part at a time, and claim what they can take. Returns whether all were
        visited.
        """
        for is_ordered in self._kinds_left:
            async with self._db.pool.connection() as connection:
                found = await endpoints_with_deliveries(
                    connection, after=self._swept[is_ordered], is_ordered=is_ordered, limit=SCAN_MAX
                )
            looked_at = await self._look_at(found)
            is_last = len(found) < SCAN_MAX and len(looked_at) == len(found)
            self.sweeps += 1
            self._swept[is_ordered] = _START if is_last else (looked_at[-1].merchant_id, looked_at[-1].endpoint_id)
        self._kinds_left = [one for one in self._kinds_left if self._swept[one] != _START] or [False, True]
        return len(self._kinds_left) == 2 and set(self._swept.values()) == {_START}

    async def _look_at(self, found: Sequence[WaitingEndpoint]) -> Sequence[WaitingEndpoint]:
        """Visit endpoints until one sweep has enough. Returns those visited."""
        claims = 0
        for number, one in enumerate(found, start=1):
            if not one.is_enabled and (one.is_due or one.is_ordered):
                async with self._db.pool.connection() as connection:
                    await give_up_deliveries(connection, one.merchant_id, one.endpoint_id, limit=GIVE_UP_MAX)
                claims += 1
            elif not one.is_enabled:
                continue
            elif one.is_due and one.is_ordered:
                self._ordered.want(one.merchant_id, one.endpoint_id)
            elif one.is_due:
                claims += await self._claim(one.merchant_id, one.endpoint_id)
            if claims >= CLAIMS_PER_SWEEP_MAX:
                return found[:number]
        return found

    async def _claim(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> bool:
        """Claim for one endpoint what it can take. Returns whether that needed the database."""
        queue = self._queue(merchant_id, endpoint_id)
        now = trio.current_time()
        if queue.held_seconds(now=now):
            queue.has_more = False
            return False
        is_careful = queue.is_suspect or not queue.is_sound
        wanted = queue.room(now=now) if is_careful else min(CLAIM_MAX, queue.affordable(self._too_old_at(now) - now))
        room = min(wanted, QUEUE_MAX - self._waiting) - len(queue.waiting)
        if room <= 0 or not self._has_room(queue):
            return False  # the next sweep tries again
        too_old_at = self._too_old_at(now)
        async with self._db.pool.connection() as connection:
            claims = await claim_due_deliveries(
                connection, merchant_id, endpoint_id, limit=room, lease_seconds=self._timing.lease_seconds
            )
        queue.has_more = len(claims) == room
        now = trio.current_time()
        for claimed in claims:
            self._take(claimed, too_old_at, now)
        return True
