"""The limits of one endpoint: how many attempts at once, how fast, and whether its breaker is open.

Concurrency adapts: every delivery raises it a little, and an endpoint that does not answer halves it. The breaker opens when half
of at least 20 attempts within 30 seconds have failed, for 10 seconds and then twice as long each time, up to five minutes; one
attempt probes. A Retry-After of the endpoint holds it as well. Nothing here waits; times are trio's.

The workers share a rate by taking turns: the time that they share is cut into slots, one for each attempt, and each slot belongs
to one worker by its number. So even a rate of one a second is kept evenly, without asking anybody.
"""

from collections import deque
from dataclasses import dataclass

from core.breaker import OPEN_SECONDS, Admission, Breaker, BreakerState
from core.ids import EndpointId, MerchantId
from core.throttling import AdaptiveLimit
from server.concurrency.worker_count import WorkerCount
from server.db.webhooks.deliveries import ClaimedDelivery
from server.db.webhooks.endpoints import Endpoint

CONCURRENCY_AT_FIRST = 16
OPEN_SECONDS_MAX = 300.0
ASKED_SECONDS_MAX = 3_600.0
SLOW_SECONDS = 2.0
BURST_SECONDS = 0.05
"""The most unused rate that may be used at once."""

TURNS_PER_SECOND_MAX = 20
"""The highest rate at which workers take turns: slots of a higher one would be shorter than a busy worker is late."""

LATE_SHARE_MAX = 0.4
"""The part of a slot in which its attempt may begin, so that it is not close to the next slot's."""

CLOCK_SECONDS = 0.01
"""The most by which the clock that workers share may move between two looks."""

Waiting = tuple[ClaimedDelivery, float]
"""A claim, and when it is too old to be attempted."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The lease of a claim, and the interval of polls."""

    lease_seconds: float
    sweep_seconds: float


class EndpointQueue:
    """One endpoint. The owner fills and empties `waiting`."""

    __slots__ = (
        "_breaker",
        "_first_slot_at",
        "_held_until",
        "_interval_seconds",
        "_limit",
        "_next_at",
        "_slot_seconds",
        "_times_opened",
        "_url",
        "endpoint_id",
        "has_more",
        "is_suspect",
        "merchant_id",
        "running",
        "waiting",
    )

    def __init__(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> None:
        self.merchant_id = merchant_id
        self.endpoint_id = endpoint_id
        self.waiting: deque[Waiting] = deque()
        self.running = 0
        self.has_more = False
        """True if more deliveries are due in the table than were claimed."""
        self.is_suspect = False
        """True if its last attempt was slow: it then gets none of the capacity reserved for other endpoints."""
        self._limit = AdaptiveLimit(ceiling=1, limit=1.0)  # until its settings are known
        self._url = ""
        self._breaker = Breaker()
        self._times_opened = 0
        self._held_until = self._next_at = float("-inf")
        self._interval_seconds = self._slot_seconds = self._first_slot_at = 0.0

    def configure(self, endpoint: Endpoint, *, workers: WorkerCount) -> None:
        """Apply the merchant's settings, and this worker's share of the rate."""
        if endpoint.url != self._url:  # another program may answer there: reset
            self._url = endpoint.url
            self._limit = AdaptiveLimit(endpoint.concurrency_max, float(min(CONCURRENCY_AT_FIRST, endpoint.concurrency_max)))
            self._breaker, self._times_opened, self._held_until, self.is_suspect = Breaker(), 0, float("-inf"), False
        elif endpoint.concurrency_max != self._limit.ceiling:
            self._limit.set_ceiling(endpoint.concurrency_max)
        rate = endpoint.requests_per_second_max
        self._interval_seconds = workers.count / rate if rate else 0.0
        takes_turns = rate is not None and rate <= TURNS_PER_SECOND_MAX and workers.count > 1
        self._slot_seconds = self._interval_seconds / workers.count if takes_turns else 0.0
        self._first_slot_at = workers.rank * self._slot_seconds - workers.clock_seconds

    @property
    def is_configured(self) -> bool:
        """Return whether its settings are known."""
        return bool(self._url)

    @property
    def has_rate(self) -> bool:
        """Return whether its merchant limits the rate."""
        return bool(self._interval_seconds)

    def held_seconds(self, *, now: float) -> float:
        """The seconds for which nothing may be sent to it."""
        return max(self._held_until - now, self._breaker.seconds_left(now=now), 0.0)

    def room(self, *, now: float) -> int:
        """The number of attempts that may begin now, including those that wait for their slot of the rate."""
        if now < self._held_until or not self._breaker.may_call(now=now):
            return 0
        if self._times_opened:
            return 0 if self.running else 1
        return int(self._limit.limit) - self.running

    @property
    def is_sound(self) -> bool:
        """Return whether its breaker is closed and has not opened recently."""
        return not self._times_opened

    def affordable(self, seconds: float) -> int:
        """The number of attempts that the rate lets begin within that many seconds."""
        return int(seconds / self._interval_seconds) + 1 if self._interval_seconds else 1_000_000

    @property
    def limit(self) -> int:
        """The number of attempts that may be under way."""
        return int(self._limit.limit)

    def may_start(self, *, now: float) -> bool:
        """Return whether one more attempt may begin now."""
        if now < self._next_at or (self._slot_seconds and now - self._slot_before(now) > LATE_SHARE_MAX * self._slot_seconds):
            return False
        return self.room(now=now) > 0

    def _slot_before(self, now: float) -> float:
        """The time at which the last slot of this worker's began."""
        return now - (now - self._first_slot_at) % self._interval_seconds

    def start(self, *, now: float) -> Admission:
        """Begin an attempt. The caller passes its result to `end`, or calls `withdraw`."""
        self.running += 1
        if self._slot_seconds:
            self._next_at = self._slot_before(now) + self._interval_seconds - CLOCK_SECONDS
        elif self._interval_seconds:
            self._next_at = max(self._next_at, now - BURST_SECONDS) + self._interval_seconds
        return self._breaker.admit(now=now)

    def end(
        self, admission: Admission, *, delivered: bool, was_slow: bool, took_seconds: float, wait_seconds: float, now: float
    ) -> None:
        """Record the result of an attempt."""
        self.running -= 1
        self.is_suspect = was_slow or took_seconds > SLOW_SECONDS
        if delivered:
            self._limit.grow()
        elif was_slow or wait_seconds:
            self._limit.cut(now=now)
        if wait_seconds:
            self._held_until = max(self._held_until, now + min(wait_seconds, ASKED_SECONDS_MAX))
        if self._breaker.record(admission, failed=not delivered, now=now):
            self._breaker.open(until=now + min(OPEN_SECONDS * 2**self._times_opened, OPEN_SECONDS_MAX))
            self._times_opened = min(self._times_opened + 1, 10)
        elif self._breaker.state(now=now) is BreakerState.CLOSED:
            self._times_opened = 0

    def withdraw(self, admission: Admission) -> None:
        """Take back an attempt that was not made."""
        self.running -= 1
        self._breaker.withdraw(admission)

    def is_at_rest(self, *, now: float) -> bool:
        """Return whether the queue holds no state worth keeping."""
        return not self.running and not self.waiting and not self._times_opened and not self.held_seconds(now=now)
