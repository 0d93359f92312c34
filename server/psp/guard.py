"""What stands between the adapters and one PSP account: breaker, concurrency, rate.

Each account has a guard of its own, so that a slow PSP keeps nobody waiting but its own callers. Invariants: a call that is
refused here, or that gives up waiting here, has sent nothing (`PspBusy`); waiting is bounded in number and time; nobody overtakes
who has waited longer for the same thing. What the workers of all processes share (the schedule of the rate, an open breaker, the
number of workers that divide the concurrency) comes from the database through `Shared`, see `server.db.psps.shared_state`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from core.breaker import Admission, Breaker, BreakerState
from core.errors import DatabaseUnavailable, Overloaded, PspBusy
from core.throttling import AdaptiveLimit, Slots

WAITING_MAX = 20_000
SHARE_SECONDS = 0.2
"""How much of the schedule is taken at once at most: the longest that other processes' callers are put back by."""

CROWDED_SHARE = 0.9
CROWDED_SECONDS = 0.5
"""Who can wait elsewhere leaves a tenth of the places free, and does not queue behind so much of the schedule."""

RATE_MARGIN = 0.9
"""Calls are sent at evenly spaced times and do not arrive so; the margin keeps the PSP's own count below what was agreed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What was agreed with a PSP, for all processes together. `requests_per_second` None: no limit."""

    concurrency: int = 2_000
    requests_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What a guard asks of all processes.

    `reserve(slots, interval_seconds)` takes a share of the schedule and returns in how many seconds it begins; `may_probe` is
    whether this process is the one to try a PSP whose breaker was open.
    """

    reserve: Callable[[int, float], Awaitable[float]]
    may_probe: Callable[[], Awaitable[bool]]


class Guard:
    """The guard of one account. `patience_seconds`: how long a call may wait here before it is refused."""

    def __init__(self, limits: Limits, shared: Shared, *, patience_seconds: float) -> None:
        self.breaker = Breaker()
        self.concurrency = AdaptiveLimit(limits.concurrency, float(limits.concurrency))
        self.in_flight = 0
        self.news: BreakerState | None = None
        """What this process's breaker did that the others have not been told yet: OPEN or CLOSED."""
        self._shared = shared
        self._patience_seconds = patience_seconds
        self._waiting = trio.lowlevel.ParkingLot()
        self._reserving = trio.Lock()
        self._slots: Slots | None = None
        self._limits = limits
        self._workers = 1
        self.move(limits)

    def share_with(self, workers: int) -> None:
        """So many workers share what was agreed, this one included."""
        self._workers = workers
        self.move(self._limits)

    def move(self, limits: Limits) -> None:
        """The agreement may have changed."""
        rate = limits.requests_per_second
        if rate != self._limits.requests_per_second or (rate is not None and self._slots is None):
            self._slots = Slots(1 / (rate * RATE_MARGIN)) if rate is not None else None
        self._limits = limits
        self.concurrency.move_ceiling(max(limits.concurrency // self._workers, 1))
        self._wake()

    @property
    def state(self) -> BreakerState:
        """How the breaker stands."""
        return self.breaker.state(now=trio.current_time())

    @property
    def is_healthy(self) -> bool:
        """Whether new payments may be sent this way."""
        return self.breaker.may_call(now=trio.current_time())

    @property
    def room(self) -> int:
        """How many calls those who can wait elsewhere may make at the same time."""
        return max(int(CROWDED_SHARE * self.concurrency.limit), 1)

    @property
    def interval_seconds(self) -> float:
        """How far apart calls are sent; 0 without a rate."""
        return self._slots.interval_seconds if self._slots is not None else 0.0

    @property
    def is_crowded(self) -> bool:
        """Whether a call that came now would have to wait, or take one of the last places."""
        behind_seconds = self._reserving.statistics().tasks_waiting * self.interval_seconds
        return bool(self._waiting) or self.in_flight >= self.room or behind_seconds > CROWDED_SECONDS

    async def admit(self) -> Admission:
        """Wait for the turn of a call, which must then `leave`. Raises `PspBusy`: nothing may be sent."""
        admission = self.breaker.admit(now=trio.current_time())
        if admission is Admission.REFUSED:
            left = self.breaker.seconds_left(now=trio.current_time())
            raise PspBusy("calls to the PSP have failed: it is left alone for a moment", retry_after_seconds=left)
        try:
            if admission is Admission.PROBE:
                await self._require_probe()
            ends_at = trio.current_time() + self._patience_seconds
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
            with trio.move_on_after(self._patience_seconds):
                may_probe = await self._shared.may_probe()
        except (DatabaseUnavailable, Overloaded) as error:
            raise PspBusy(f"the workers cannot agree on who tries the PSP: {error}") from error
        if not may_probe:
            raise PspBusy("another worker is finding out whether the PSP has recovered")

    def _require_closed(self, admission: Admission) -> None:
        """The breaker may have opened while this call waited. Raises `PspBusy`."""
        if admission is Admission.CALL and self.state is not BreakerState.CLOSED:
            raise PspBusy("calls to the PSP have failed meanwhile: it is left alone for a moment")

    def leave(self, admission: Admission, *, failed: bool | None = None) -> None:
        """The call has ended; `failed` is whether the PSP did, None where nothing was learned about it."""
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

    def push_back(self) -> None:
        """The PSP said that it was too much."""
        self.concurrency.cut(now=trio.current_time())

    async def _wait_for_place(self, ends_at: float) -> None:
        if len(self._waiting) >= WAITING_MAX:
            raise PspBusy("too many calls wait for the PSP")
        with trio.move_on_at(ends_at):
            await self._waiting.park()
            return
        raise PspBusy(f"the PSP had no place within {self._patience_seconds:g} s")

    def _wake(self) -> None:
        """Places that are free go to those that have waited longest."""
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
            raise PspBusy(f"the PSP's rate had no room within {self._patience_seconds:g} s")
        await trio.sleep_until(at)

    async def _slot_of_next_share(self, slots: Slots, ends_at: float) -> float:
        """Take turns in reserving a share for all who wait for one."""
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
        raise PspBusy(f"the PSP's rate had no room within {self._patience_seconds:g} s")

    async def _reserve(self, slots: int, interval_seconds: float) -> float:
        try:
            return await self._shared.reserve(slots, interval_seconds)
        except (DatabaseUnavailable, Overloaded) as error:
            raise PspBusy(f"no share of the PSP's rate can be had: {error}") from error
