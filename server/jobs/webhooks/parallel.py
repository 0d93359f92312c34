"""Sends events to merchants' webhook endpoints.

What this worker committed arrives through `notify` and is sent within milliseconds; what is due otherwise (a retry, a dead
worker's deliveries) is claimed from the table, endpoint by endpoint. Invariants:

- At most `IN_FLIGHT_MAX` attempts run, and of those to endpoints that do not answer at most `SUSPECT_IN_FLIGHT_MAX`, so that
  there is always room for the others. At most `QUEUE_MAX` wait in memory; the rest waits in the table, and is not claimed for an
  endpoint that takes nothing at the moment.
- A claim that cannot be attempted soon is given back, and counts no attempt.
- An attempt ends well inside its lease, and its result is committed in a group.
- Endpoints that want their events in order have one task each, in whichever worker holds them (`server.jobs.webhooks.ordered`).
"""

from collections.abc import Sequence
from uuid import UUID

import structlog
import trio

from core.breaker import Admission
from core.errors import DatabaseUnavailable, FlorinError, Overloaded
from core.ids import EndpointId, MerchantId
from server.concurrency.worker_count import WorkerCount
from server.db.database import Database
from server.db.payments.changes import Applied
from server.db.webhooks.deliveries import (
    ClaimedDelivery,
    WaitingEndpoint,
    bury,
    claim_due_deliveries,
    endpoints_with_deliveries,
    give_back,
)
from server.flows.webhooks.send import NotMade, Sender
from server.jobs.webhooks.endpoint_lane import Lane, Timing
from server.jobs.webhooks.ordered import MARGIN, send_in_order
from server.telemetry import Metrics

IN_FLIGHT_MAX = 2_048
SUSPECT_IN_FLIGHT_MAX = 1_024
ORDERED_MAX = 512
QUEUE_MAX = 8_192
WAITING_PER_LANE_MAX = 512
CLAIM_MAX = 128
BURY_MAX = 1_000
SCAN_MAX = 1_000
CLAIMS_PER_SWEEP_MAX = 64
LANES_MAX = 10_000
RETURNED_MAX = 16_384
RETURNED_AT_ONCE_MAX = 500
RETURN_SECONDS = 0.1
TICK_SECONDS = 0.02
SUSPECT_SECONDS = 1.0
"""When what waited for an endpoint that did not answer may be claimed again."""
_START = (UUID(int=0), UUID(int=0))
_log = structlog.get_logger()


class Deliverer:
    """The job and its lanes."""

    def __init__(self, db: Database, sender: Sender, metrics: Metrics, workers: WorkerCount, timing: Timing) -> None:
        self._db = db
        self._sender = sender
        self._metrics = metrics
        self._workers = workers
        self._timing = timing
        self._nursery: trio.Nursery | None = None
        self._lanes: dict[EndpointId, Lane] = {}
        self._running = self._suspects_running = self._waiting = 0
        self._blocked: set[Lane] = set()
        """Lanes with something waiting that could not begin: for their rate, or for room."""
        self._hungry: set[Lane] = set()
        """Lanes that could take more than what was claimed for them."""
        self._ordered: dict[EndpointId, bool] = {}
        self._returned: list[tuple[ClaimedDelivery, float]] = []
        self._is_wanted = trio.Event()
        self._forgot_at = float("-inf")
        self._swept = {False: _START, True: _START}
        self._kinds_left = [False, True]
        self.sweeps = 0
        """How often the table was looked at, whole or a piece of it."""

    def notify(self, applied: Applied) -> None:
        """Take over what was just committed. What there is no room for comes back from the table."""
        if applied.event is None or self._nursery is None:
            return
        for target in applied.targets:
            if target.is_ordered:
                self._want_in_order(applied.event.merchant_id, target.endpoint_id)
            else:
                self._take(ClaimedDelivery(applied.event, target.endpoint_id, attempt=1), self._too_old_at())

    def is_idle(self) -> bool:
        """Whether nothing is in hand."""
        return not (self._running or self._waiting or self._ordered or self._returned)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._sweep_forever)
            self._nursery.start_soon(self._tick_forever)
            self._nursery.start_soon(self._return_forever)
            task_status.started()

    # Claims in hand

    def _too_old_at(self) -> float:
        """When an attempt could no longer end, and be written, before the lease of a claim made now."""
        return trio.current_time() + self._timing.lease_seconds - (1 + MARGIN) * self._sender.attempt_seconds

    def _take(self, claimed: ClaimedDelivery, too_old_at: float) -> None:
        lane = self._lane(claimed.event.merchant_id, claimed.endpoint_id)
        now = trio.current_time()
        held_seconds = lane.held_seconds(now=now)
        is_at_once = not lane.waiting and lane.may_start(now=now) and self._has_room(lane)
        if held_seconds or not (is_at_once or self._may_wait(lane)):
            self._return(claimed, held_seconds or self._timing.sweep_seconds)
            return
        lane.waiting.append((claimed, too_old_at))
        self._waiting += 1
        self._start(lane)

    def _may_wait(self, lane: Lane) -> bool:
        """Whether one more may wait for an endpoint; few, where many wait already."""
        share = WAITING_PER_LANE_MAX if self._waiting < QUEUE_MAX // 2 else WAITING_PER_LANE_MAX // 16
        return self._waiting < QUEUE_MAX and len(lane.waiting) < share

    def _lane(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> Lane:
        lane = self._lanes.get(endpoint_id)
        if lane is None:
            if len(self._lanes) >= LANES_MAX and trio.current_time() - self._forgot_at > 1.0:
                self._forget_lanes()
            lane = self._lanes[endpoint_id] = Lane(merchant_id, endpoint_id)
            if destination := self._sender.known(merchant_id, endpoint_id):
                lane.configure(destination.endpoint, workers=self._workers.count)
        return lane

    def _forget_lanes(self) -> None:
        now = self._forgot_at = trio.current_time()
        for is_held_too in (False, True):
            for endpoint_id, lane in list(self._lanes.items()):
                if lane.is_at_rest(now=now) or (is_held_too and not lane.running and not lane.waiting):
                    del self._lanes[endpoint_id]
            if len(self._lanes) < LANES_MAX:
                return

    def _start(self, lane: Lane) -> None:
        """Begin as many attempts as may begin."""
        assert self._nursery is not None
        while lane.waiting:
            now = trio.current_time()
            if now >= lane.waiting[0][1]:  # it would use up a slot of the rate, and not be sent
                self._waiting -= 1
                self._return(lane.waiting.popleft()[0], self._timing.sweep_seconds)
                continue
            if not self._has_room(lane) or not lane.may_start(now=now):
                self._blocked.add(lane)
                return
            claimed, too_old_at = lane.waiting.popleft()
            self._waiting -= 1
            admission = lane.start(now=now)
            self._running += 1
            self._suspects_running += lane.is_suspect
            self._nursery.start_soon(self._attempt, lane, claimed, too_old_at, admission, lane.is_suspect)
        self._blocked.discard(lane)

    def _want_more(self, lane: Lane) -> None:
        """Have more claimed for a lane before it has nothing to do."""
        if lane.has_more and len(lane.waiting) <= lane.limit:
            self._hungry.add(lane)
            self._is_wanted.set()

    def _has_room(self, lane: Lane) -> bool:
        if lane.is_suspect and self._suspects_running >= SUSPECT_IN_FLIGHT_MAX:
            return False
        return self._running < IN_FLIGHT_MAX

    async def _attempt(
        self,
        lane: Lane,
        claimed: ClaimedDelivery,
        too_old_at: float,
        admission: Admission,
        was_suspect: bool,  # noqa: FBT001 - start_soon passes by position
    ) -> None:
        began = trio.current_time()
        attempted = await self._sender.attempt(claimed, too_old_at=too_old_at)
        if isinstance(attempted, NotMade):
            lane.withdraw(admission)
            self._return(claimed, self._timing.sweep_seconds)
        else:
            now, result = trio.current_time(), attempted.result
            lane.end(
                admission,
                delivered=result.delivered,
                was_slow=attempted.was_slow,
                took_seconds=now - began,
                wait_seconds=attempted.wait_seconds,
                now=now,
            )
            self._metrics.webhook_attempted(result.status, delivered=result.delivered)
            if destination := self._sender.known(lane.merchant_id, lane.endpoint_id):
                lane.configure(destination.endpoint, workers=self._workers.count)
            try:
                await self._db.delivery_results.submit(result)
            except FlorinError as error:
                _log.warning("a delivery's result could not be written; it will be repeated", error=str(error))
        self._running -= 1
        self._suspects_running -= was_suspect
        held_seconds = lane.held_seconds(now=trio.current_time())
        if held_seconds or lane.is_suspect:
            self._empty(lane, held_seconds or SUSPECT_SECONDS)
        self._start(lane)
        self._want_more(lane)

    def _empty(self, lane: Lane, held_seconds: float) -> None:
        """Nothing may be sent there for a while: let go of what waits for it."""
        self._waiting -= len(lane.waiting)
        while lane.waiting:
            self._return(lane.waiting.popleft()[0], held_seconds)

    def _return(self, claimed: ClaimedDelivery, seconds: float) -> None:
        if len(self._returned) < RETURNED_MAX:
            self._returned.append((claimed, seconds))

    # What goes on all the time

    async def _tick_forever(self) -> None:
        """Begin what had to wait for its rate or for room."""
        while True:
            await trio.sleep(TICK_SECONDS)
            for lane in list(self._blocked):
                if held_seconds := lane.held_seconds(now=trio.current_time()):
                    self._empty(lane, held_seconds)
                self._start(lane)
                self._want_more(lane)

    async def _return_forever(self) -> None:
        while True:
            await trio.sleep(RETURN_SECONDS)
            while self._returned:
                returned, self._returned = self._returned[:RETURNED_AT_ONCE_MAX], self._returned[RETURNED_AT_ONCE_MAX:]
                try:
                    async with self._db.pool.connection() as connection:
                        await give_back(connection, returned)
                except (DatabaseUnavailable, Overloaded) as error:
                    _log.warning("claims could not be given back; their leases will end", error=str(error))

    async def _sweep_forever(self) -> None:
        sweep_at = trio.current_time() + self._timing.sweep_seconds
        while True:
            with trio.move_on_at(sweep_at):
                await self._is_wanted.wait()
            self._is_wanted = trio.Event()
            try:
                await self._feed_hungry()
                if trio.current_time() >= sweep_at:
                    is_through = await self._sweep()
                    sweep_at = trio.current_time() + (self._timing.sweep_seconds if is_through else TICK_SECONDS)
            except (DatabaseUnavailable, Overloaded) as error:
                _log.warning("cannot look for due deliveries", error=str(error))
                await trio.sleep(self._timing.sweep_seconds)

    async def _feed_hungry(self) -> None:
        """Claim more for lanes that have dealt with what was claimed for them."""
        hungry, self._hungry = self._hungry, set()
        for lane in hungry:
            await self._claim(lane.merchant_id, lane.endpoint_id)

    async def _sweep(self) -> bool:
        """Look for endpoints with due deliveries, a piece at a time, and claim what they bear; whether all were looked at."""
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
        """Deal with endpoints until that is enough for one sweep; those that were dealt with."""
        claims = 0
        for number, one in enumerate(found, start=1):
            if not one.is_enabled and (one.is_due or one.is_ordered):
                async with self._db.pool.connection() as connection:
                    await bury(connection, one.merchant_id, one.endpoint_id, limit=BURY_MAX)
                claims += 1
            elif not one.is_enabled:
                continue
            elif one.is_due and one.is_ordered:
                self._want_in_order(one.merchant_id, one.endpoint_id)
            elif one.is_due:
                claims += await self._claim(one.merchant_id, one.endpoint_id)
            if claims >= CLAIMS_PER_SWEEP_MAX:
                return found[:number]
        return found

    async def _claim(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> bool:
        """Claim for one endpoint what it can take; whether that needed the database."""
        lane = self._lane(merchant_id, endpoint_id)
        now = trio.current_time()
        if lane.held_seconds(now=now):
            lane.has_more = False
            return False
        is_careful = lane.is_suspect or not lane.is_sound
        wanted = lane.room(now=now) if is_careful else min(CLAIM_MAX, lane.affordable(self._too_old_at() - now))
        room = min(wanted, QUEUE_MAX - self._waiting) - len(lane.waiting)
        if room <= 0 or not self._has_room(lane):
            return False  # the next sweep asks again
        too_old_at = self._too_old_at()
        async with self._db.pool.connection() as connection:
            claims = await claim_due_deliveries(
                connection, merchant_id, endpoint_id, limit=room, lease_seconds=self._timing.lease_seconds
            )
        lane.has_more = len(claims) == room
        for claimed in claims:
            self._take(claimed, too_old_at)
        return True

    # In order

    def _want_in_order(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> None:
        if endpoint_id in self._ordered:
            self._ordered[endpoint_id] = True
        elif len(self._ordered) < ORDERED_MAX and self._nursery is not None:
            self._ordered[endpoint_id] = False
            self._nursery.start_soon(self._send_in_order, merchant_id, endpoint_id)

    async def _send_in_order(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> None:
        try:
            is_wanted = True
            while is_wanted:
                self._ordered[endpoint_id] = False
                is_left = await send_in_order(
                    self._db, self._sender, self._metrics, merchant_id, endpoint_id, lease_seconds=self._timing.lease_seconds
                )
                is_wanted = self._ordered[endpoint_id] or (is_left and len(self._ordered) < ORDERED_MAX)
        except FlorinError as error:
            _log.warning("cannot deliver in order; its lease will end", error=str(error))
        finally:
            del self._ordered[endpoint_id]
