"""What one endpoint bears: how many attempts at once and how fast, and whether it is left alone for a while.

Concurrency adapts: every delivery raises it a little, an endpoint that does not answer halves it. A breaker opens where half of
at least 20 attempts within 30 seconds have failed, for 10 seconds and then twice as long each time, up to five minutes; one
attempt finds out. What the endpoint itself asks for (Retry-After) holds it as well. Nothing here waits; times are trio's.
"""

from collections import deque
from dataclasses import dataclass

from core.breaker import OPEN_SECONDS, Admission, Breaker, BreakerState
from core.ids import EndpointId, MerchantId
from core.throttling import AdaptiveLimit
from server.db.webhooks.deliveries import ClaimedDelivery
from server.db.webhooks.endpoints import Endpoint

CONCURRENCY_AT_FIRST = 16
OPEN_SECONDS_MAX = 300.0
ASKED_SECONDS_MAX = 3_600.0
SLOW_SECONDS = 2.0
BURST_SECONDS = 0.05
"""How much of the rate that was not used may be made good at once."""

Waiting = tuple[ClaimedDelivery, float]
"""A claim, and when it is too old to be attempted."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a claim is ours, and how often the table is looked at."""

    lease_seconds: float
    sweep_seconds: float


class Lane:
    """One endpoint. `waiting` is filled and emptied by the owner."""

    __slots__ = (
        "_breaker",
        "_held_until",
        "_interval_seconds",
        "_limit",
        "_next_at",
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
        """Whether more is due in the table than was claimed."""
        self.is_suspect = False
        """Whether its last attempt took long: then it has no part in the room that is kept for others."""
        self._limit = AdaptiveLimit(ceiling=1, limit=1.0)  # until its settings are known
        self._url = ""
        self._breaker = Breaker()
        self._times_opened = 0
        self._held_until = self._next_at = float("-inf")
        self._interval_seconds = 0.0

    def configure(self, endpoint: Endpoint, *, workers: int) -> None:
        """Take over what its merchant has set. The rate is divided among the workers."""
        if endpoint.url != self._url:  # another program answers there: begin anew
            self._url = endpoint.url
            self._limit = AdaptiveLimit(endpoint.concurrency_max, float(min(CONCURRENCY_AT_FIRST, endpoint.concurrency_max)))
            self._breaker, self._times_opened, self._held_until, self.is_suspect = Breaker(), 0, float("-inf"), False
        elif endpoint.concurrency_max != self._limit.ceiling:
            self._limit.move_ceiling(endpoint.concurrency_max)
        rate = endpoint.requests_per_second_max
        self._interval_seconds = workers / rate if rate else 0.0

    def held_seconds(self, *, now: float) -> float:
        """For how long nothing may be sent there."""
        return max(self._held_until - now, self._breaker.seconds_left(now=now), 0.0)

    def room(self, *, now: float) -> int:
        """How many attempts may begin now, those that wait for their slot of the rate included."""
        if now < self._held_until or not self._breaker.may_call(now=now):
            return 0
        if self._times_opened:
            return 0 if self.running else 1
        return int(self._limit.limit) - self.running

    @property
    def is_sound(self) -> bool:
        """Whether it was not left alone lately."""
        return not self._times_opened

    def affordable(self, seconds: float) -> int:
        """How many attempts the rate lets begin within so many seconds."""
        return int(seconds / self._interval_seconds) + 1 if self._interval_seconds else 1_000_000

    @property
    def limit(self) -> int:
        """How many attempts may be under way."""
        return int(self._limit.limit)

    def may_start(self, *, now: float) -> bool:
        """Whether one more attempt may begin at this moment."""
        return now >= self._next_at and self.room(now=now) > 0

    def start(self, *, now: float) -> Admission:
        """An attempt begins; what it got must be given to `end`, or `withdraw`."""
        self.running += 1
        if self._interval_seconds:
            self._next_at = max(self._next_at, now - BURST_SECONDS) + self._interval_seconds
        return self._breaker.admit(now=now)

    def end(
        self, admission: Admission, *, delivered: bool, was_slow: bool, took_seconds: float, wait_seconds: float, now: float
    ) -> None:
        """The attempt has ended so."""
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
        """The attempt was not made after all."""
        self.running -= 1
        self._breaker.withdraw(admission)

    def is_at_rest(self, *, now: float) -> bool:
        """Whether it may be forgotten."""
        return not self.running and not self.waiting and not self._times_opened and not self.held_seconds(now=now)
