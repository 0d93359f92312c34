"""Guards the calls to one PSP account: breaker, concurrency, rate.

Each account has its own guard, so a slow PSP delays only its own callers. Invariants: a call that is refused here, or gives up
waiting here, has sent nothing (`PspBusy`); waiting is bounded in number and time; waiting is first come, first served. State that
the workers of all processes share (the schedule of the rate, an open breaker, the number of workers that divide the concurrency)
comes from the database through `Shared`, see `server.db.psps.shared_state`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from core.breaker import Admission, Breaker, BreakerState
from core.errors import DatabaseUnavailable, Overloaded, PspBusy
from core.throttling import AdaptiveLimit, Slots

WAITING_MAX = 20_000
SHARE_SECONDS = 0.2
"""The longest range of the schedule that is reserved at once, and so the longest delay of other processes' callers."""

CROWDED_SHARE = 0.9
CROWDED_SECONDS = 0.5
"""Batch traffic leaves 10 % of the capacity to interactive payments, and does not queue behind this much of the schedule."""

RATE_MARGIN = 0.9
"""Calls are sent at even intervals but do not arrive so; the margin keeps the PSP's own count below the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The agreed limits of an account, for all processes together. `requests_per_second` None means no limit."""

    concurrency: int = 2_000
    requests_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The state that a guard shares with all processes.

    `reserve(slots, interval_seconds)` reserves a range of the schedule and returns the seconds until it begins; `may_probe`
    returns whether this process may probe a PSP whose breaker was open.
    """

    reserve: Callable[[int, float], Awaitable[float]]
    may_probe: Callable[[], Awaitable[bool]]


class Guard:
    """The guard of one account. `admission_seconds_max` is how long a call may wait here before it is refused."""

    def __init__(self, limits: Limits, shared: Shared, *, admission_seconds_max: float) -> None:
        self.breaker = Breaker()
        self.concurrency = AdaptiveLimit(limits.concurrency, float(limits.concurrency))
        self.in_flight = 0
        self.news: BreakerState | None = None
        """A change of this process's breaker that the others do not know yet: OPEN or CLOSED."""
        self._shared = shared
        self._admission_seconds_max = admission_seconds_max
        self._waiting = trio.lowlevel.ParkingLot()
        self._reserving = trio.Lock()
        self._slots: Slots | None = None
        self._limits = limits
        self._workers = 1
        self.move(limits)

    def share_with(self, workers: int) -> None:
        """Divide the limits among that many workers, this one included."""
        self._workers = workers
        self.move(self._limits)

    def move(self, limits: Limits) -> None:
        """Apply changed limits."""
        rate = limits.requests_per_second
        if rate != self._limits.requests_per_second or (rate is not None and self._slots is None):
            self._slots = Slots(1 / (rate * RATE_MARGIN)) if rate is not None else None
        self._limits = limits
        self.concurrency.set_ceiling(max(limits.concurrency // self._workers, 1))
        self._wake()

    @property
    def state(self) -> BreakerState:
        """The state of the breaker."""
        return self.breaker.state(now=trio.current_time())

    @property
    def is_healthy(self) -> bool:
        """True if new payments may be sent to the account."""
        return self.breaker.may_call(now=trio.current_time())

    @property
    def room(self) -> int:
        """The number of calls that batch traffic may have under way."""
        return max(int(CROWDED_SHARE * self.concurrency.limit), 1)

    @property
    def interval_seconds(self) -> float:
        """The interval between calls; 0 without a rate."""
        return self._slots.interval_seconds if self._slots is not None else 0.0

    @property
    def is_crowded(self) -> bool:
        """True if a call would now have to wait, or take one of the last places."""
        behind_seconds = self._reserving.statistics().tasks_waiting * self.interval_seconds
        return bool(self._waiting) or self.in_flight >= self.room or behind_seconds > CROWDED_SECONDS

    async def admit(self) -> Admission:
        """Wait for the turn of a call, which must then `leave`. Raises `PspBusy` if nothing may be sent."""
        admission = self.breaker.admit(now=trio.current_time())
        if admission is Admission.REFUSED:
            left = self.breaker.seconds_left(now=trio.current_time())
            raise PspBusy("calls to the PSP have failed: its breaker is open", retry_after_seconds=left)
        try:
            if admission is Admission.PROBE:
                await self._require_probe()
            ends_at = trio.current_time() + self._admission_seconds_max
            if self.in_flight >= int(self.concurrency.limit) or self._waiting:
                await self._wait_for_place(ends_at)
            else:
                self.in_flight += 1
        except BaseException:
            self.breaker.withdraw(admission)
            raise
        try:
            if self._slots is not None:
                await self._wait_for_slot(self._slots, ends_at)
            self._require_closed(admission)
        except BaseException:
            self.leave(admission)
            raise
        return admission

    async def _require_probe(self) -> None:
        may_probe = False
        try:
            with trio.move_on_after(self._admission_seconds_max):
                may_probe = await self._shared.may_probe()
        except (DatabaseUnavailable, Overloaded) as error:
            raise PspBusy(f"it is not known whether another worker is probing the PSP: {error}") from error
        if not may_probe:
            raise PspBusy("another worker is probing the PSP")

    def _require_closed(self, admission: Admission) -> None:
        """Raise `PspBusy` if the breaker opened while this call waited."""
        if admission is Admission.CALL and self.state is not BreakerState.CLOSED:
            raise PspBusy("calls to the PSP have failed meanwhile: its breaker is open")

    def leave(self, admission: Admission, *, failed: bool | None = None) -> None:
        """End a call. `failed` is whether the PSP failed, or None if nothing was learned about it."""
        self.in_flight -= 1
        if failed is None:
            self.breaker.withdraw(admission)
        else:
            opened = self.breaker.record(admission, failed=failed, now=trio.current_time())
            if opened or admission is Admission.PROBE:
                self.news = BreakerState.OPEN if opened else BreakerState.CLOSED
            if not failed:
                self.concurrency.grow()
        self._wake()

    def record_429(self) -> None:
        """Record a 429."""
        self.concurrency.cut(now=trio.current_time())

    async def _wait_for_place(self, ends_at: float) -> None:
        if len(self._waiting) >= WAITING_MAX:
            raise PspBusy("too many calls are waiting for the PSP")
        with trio.move_on_at(ends_at):
            await self._waiting.park()
            return
        raise PspBusy(f"the limit of concurrent calls to the PSP was reached for {self._admission_seconds_max:g} s")

    def _wake(self) -> None:
        """Give free places to those that have waited longest."""
        while self._waiting and self.in_flight < int(self.concurrency.limit):
            self.in_flight += 1
            self._waiting.unpark()

    async def _wait_for_slot(self, slots: Slots, ends_at: float) -> None:
        at = None
        if not self._reserving.statistics().tasks_waiting:
            at = slots.take(now=trio.current_time(), before=ends_at)
        if at is None:
            at = await self._slot_of_next_share(slots, ends_at)
        if at > ends_at:
            raise PspBusy(f"the PSP's rate limit left no slot within {self._admission_seconds_max:g} s")
        await trio.sleep_until(at)

    async def _slot_of_next_share(self, slots: Slots, ends_at: float) -> float:
        """Take turns in reserving a range for all that wait for one."""
        with trio.move_on_at(ends_at):
            async with self._reserving:
                at = slots.take(now=trio.current_time(), before=ends_at)
                if at is None:
                    wanted = 1 + self._reserving.statistics().tasks_waiting
                    count = max(min(wanted, int(SHARE_SECONDS / slots.interval_seconds)), 1)
                    begins_in_seconds = await self._reserve(count, slots.interval_seconds)
                    slots.next_at = trio.current_time() + begins_in_seconds
                    slots.ends_at = slots.next_at + (count - 0.5) * slots.interval_seconds
                    at = slots.take(now=slots.next_at, before=ends_at)
                    assert at is not None
                return at
        raise PspBusy(f"the PSP's rate limit left no slot within {self._admission_seconds_max:g} s")

    async def _reserve(self, slots: int, interval_seconds: float) -> float:
        try:
            return await self._shared.reserve(slots, interval_seconds)
        except (DatabaseUnavailable, Overloaded) as error:
            raise PspBusy(f"the PSP's rate cannot be reserved: {error}") from error
