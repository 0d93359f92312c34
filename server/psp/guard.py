"""Guards the calls to one PSP account: breaker, concurrency, rate.

Each account has its own guard, so a slow PSP delays only its own callers. A caller takes a `Turn` at the PSP, which may be
reserved before anything is written: what cannot be sent in time is then refused without a trace. Invariants: a call that is
refused here, or gives up waiting here, has sent nothing (`PspBusy`); waiting is bounded in number and time; a waiting call is
served by its urgency and in fair rounds between merchants (`core.fair_queue`); one that could not be served in time is refused
at once. State that the workers of all processes share (the schedule of the rate, an open breaker, the number of workers that
divide the concurrency) comes from the database through `Shared`.
"""

from dataclasses import dataclass

import trio

from core.breaker import Admission, Breaker, BreakerState
from core.errors import DatabaseUnavailable, Overloaded, PspBusy
from core.fair_queue import FairQueue
from core.throttling import AdaptiveLimit
from server.psp.rate_schedule import RateSchedule, Shared
from server.psp.turn import Turn

WAITING_MAX = 20_000
CROWDED_SHARE = 0.9
CROWDED_SECONDS = 0.5
"""Batch traffic leaves 10 % of the capacity to interactive payments, and does not queue behind this much of the schedule."""

OUTAGE_FAILURES = 3
"""So many failures in a row are an outage. Calls that fail now and then are not."""

RETRY_SECONDS_MAX = 60.0
AVERAGE_WEIGHT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The agreed limits of an account, for all processes together. `requests_per_second` None means no limit."""

    concurrency: int = 2_000
    requests_per_second: float | None = None


class _Waiter:
    """A call that waits for its place. `granted`: it has one."""

    __slots__ = ("granted", "wakeup")

    def __init__(self) -> None:
        self.granted = False
        self.wakeup = trio.Event()

    def wake(self) -> None:
        self.wakeup.set()
        self.wakeup = trio.Event()


class Guard:
    """The guard of one account. `admission_seconds_max` is how long a call may wait here before it is refused."""

    def __init__(self, limits: Limits, shared: Shared, *, admission_seconds_max: float) -> None:
        self.breaker = Breaker()
        self.concurrency = AdaptiveLimit(limits.concurrency, float(limits.concurrency))
        self.in_flight = 0
        self.news: BreakerState | None = None
        """A change of this process's breaker that the others do not know yet: OPEN, CLOSED, or HALF_OPEN if it gives its probe
        back.
        """
        self._shared = shared
        self._admission_seconds_max = admission_seconds_max
        self._queue = FairQueue[_Waiter](WAITING_MAX)
        self._dispatcher: _Waiter | None = None
        self._place_free = trio.Event()
        self._schedule: RateSchedule | None = None
        self._is_asking = False
        self._average_seconds = 0.0
        self.has_recovered = False
        """Set once a call succeeds after an outage; `server.jobs.psp_sync` sets it back, and not again before `hasten_at`."""
        self.hasten_at = 0.0
        self._failures_in_a_row = 0
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
        if rate != self._limits.requests_per_second or (rate is not None and self._schedule is None):
            self._schedule = RateSchedule(rate, self._shared) if rate is not None else None
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
        return self._schedule.interval_seconds if self._schedule is not None else 0.0

    @property
    def waiting(self) -> int:
        """The number of calls that wait."""
        return len(self._queue)

    @property
    def is_crowded(self) -> bool:
        """True if a call would now have to wait, or take one of the last places."""
        behind_seconds = len(self._queue) * self.interval_seconds
        return (bool(self._queue) and self._schedule is None) or self.in_flight >= self.room or behind_seconds > CROWDED_SECONDS

    def try_reserve(self, turn: Turn) -> bool:
        """Reserve a place for the next call of a turn if that needs no waiting. Returns whether it did."""
        if self.breaker.state(now=trio.current_time()) is not BreakerState.CLOSED or not self._can_go_now():
            return False
        self.in_flight += 1
        turn.hold(self, Admission.CALL)
        return True

    async def reserve(self, turn: Turn, *, seconds: float | None = None) -> None:
        """Wait for a place for the next call of a turn, for `seconds` or the usual time; 0 takes one only if there is room, which
        at a rate may take the interval between two calls. Raises `PspBusy` if nothing may be sent.

        The turn must then use it or `release` it.
        """
        if turn.guard is self:
            return
        seconds = self._admission_seconds_max if seconds is None else seconds
        admission = self.breaker.admit(now=trio.current_time())
        if admission is Admission.REFUSED:
            left = self.breaker.seconds_left(now=trio.current_time())
            raise PspBusy("calls to the PSP have failed: its breaker is open", retry_after_seconds=left)
        try:
            if self._can_go_now():
                self.in_flight += 1
            elif seconds > 0:
                await self._wait(turn, seconds)
            else:
                await self._take_soon(turn)
        except BaseException:
            self.breaker.withdraw(admission)
            raise
        if admission is Admission.PROBE:
            await self._claim_probe()
        turn.hold(self, admission)
        if admission is Admission.CALL and self.state is not BreakerState.CLOSED:
            turn.release()
            left = self.breaker.seconds_left(now=trio.current_time())
            raise PspBusy("calls to the PSP have failed meanwhile: its breaker is open", retry_after_seconds=left)

    def try_admit(self, turn: Turn) -> Admission | None:
        """Let the next call of a turn go as `admit` does, if it has a place and need not wait; otherwise return None."""
        return turn.take(self) if self._schedule is None else None

    async def admit(self, turn: Turn) -> Admission:
        """Let the next call of a turn go, which must then `leave`: with its reserved place, or after waiting for one.

        Raises `PspBusy` if nothing may be sent. Calls whose places were reserved for different times do not go at once.
        """
        admission = turn.take(self)
        if admission is None:
            await self.reserve(turn)
            admission = turn.take(self)
            assert admission is not None
        if self._schedule is not None and (go_at := self._schedule.spaced()) > trio.current_time():
            try:
                await trio.sleep_until(go_at)
            except BaseException:
                self.leave(admission)
                raise
        return admission

    async def _claim_probe(self) -> None:
        """Make a call that has a place the probe of all processes. Raises `PspBusy`, without the place, if another one probes."""
        may_probe = False
        try:
            with trio.move_on_after(self._admission_seconds_max):
                may_probe = await self._shared.may_probe()
        except (DatabaseUnavailable, Overloaded) as error:
            raise PspBusy(f"it is not known whether another worker is probing the PSP: {error}") from error
        finally:
            if not may_probe:
                self.in_flight -= 1
                self.breaker.withdraw(Admission.PROBE)
                self._wake()
        if not may_probe:
            raise PspBusy("another worker is probing the PSP")

    def leave(self, admission: Admission, *, failed: bool | None = None, took_seconds: float | None = None) -> None:
        """End a call. `failed` is whether the PSP failed, or None if nothing was learned about it."""
        self.in_flight -= 1
        if took_seconds is not None:
            self._average_seconds += AVERAGE_WEIGHT * (took_seconds - self._average_seconds)
        if failed is None:
            self.breaker.withdraw(admission)
            if admission is Admission.PROBE:
                self.news = self.news or BreakerState.HALF_OPEN
        else:
            opened = self.breaker.record(admission, failed=failed, now=trio.current_time())
            if opened or admission is Admission.PROBE:
                self.news = BreakerState.OPEN if opened else BreakerState.CLOSED
            if not failed:
                self.concurrency.grow()
                self.has_recovered = self.has_recovered or self._failures_in_a_row >= OUTAGE_FAILURES
            self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        self._wake()

    def record_429(self) -> None:
        """Record a 429."""
        self.concurrency.cut(now=trio.current_time())

    def wait_seconds(self, turn: Turn) -> float:
        """The time that a new call of this turn would wait behind others, about."""
        ahead = self._queue.ahead_of(turn.merchant, turn.urgency)
        others = self._workers if self._schedule is not None and self._schedule.others_wait else 1
        for_rate = ahead * self.interval_seconds * others
        for_place = ahead * self._average_seconds / max(self.concurrency.limit, 1.0)
        return max(for_rate, for_place if self.in_flight >= int(self.concurrency.limit) else 0.0)

    def _can_go_now(self) -> bool:
        """Take a slot of the rate if a call needs to wait for nothing."""
        if self._queue or self.in_flight >= int(self.concurrency.limit):
            return False
        return self._schedule is None or self._schedule.take_now()

    async def _wait(self, turn: Turn, seconds: float) -> None:
        """Wait for a place. Raises `PspBusy`, at once if it would come too late."""
        if not self._queue.has_room(turn.merchant):
            raise PspBusy("too many calls are waiting for the PSP", retry_after_seconds=self._retry_after(turn))
        if self.wait_seconds(turn) > seconds:
            raise PspBusy(self._lack(seconds), retry_after_seconds=self._retry_after(turn))
        waiter = _Waiter()
        entry = self._queue.add(waiter, merchant=turn.merchant, urgency=turn.urgency)
        try:
            with trio.move_on_after(seconds):
                while not waiter.granted:
                    if self._schedule is not None and self._dispatcher is None:
                        await self._dispatch(waiter, self._schedule)
                    else:
                        await waiter.wakeup.wait()
        except BaseException:
            if waiter.granted:
                self.in_flight -= 1
            raise
        finally:
            self._queue.remove(entry)
            self._wake()
        if not waiter.granted:
            raise PspBusy(self._lack(seconds), retry_after_seconds=self._retry_after(turn))

    async def _take_soon(self, turn: Turn) -> None:
        """Take a slot of the rate that begins within one interval. Raises `PspBusy` if there is none, or no rate to wait for."""
        schedule = self._schedule
        is_full = bool(self._queue) or self._is_asking or self.in_flight >= int(self.concurrency.limit)
        if schedule is None or is_full:
            raise PspBusy(self._lack(0.0), retry_after_seconds=self._retry_after(turn))
        self.in_flight += 1
        self._is_asking = True
        has_slot = False
        try:
            at = await schedule.take_soon()
            if at is not None:
                await trio.sleep_until(at)
                has_slot = True
        finally:
            self._is_asking = False
            if not has_slot:
                self.in_flight -= 1
            self._wake()
        if not has_slot:
            raise PspBusy(self._lack(0.0), retry_after_seconds=self._retry_after(turn))

    async def _dispatch(self, own: _Waiter, schedule: RateSchedule) -> None:
        """Give the slots of the rate to those that wait, as one of them, until it has its own place."""
        self._dispatcher = own
        try:
            while not own.granted and self._schedule is schedule:
                if self.in_flight >= int(self.concurrency.limit):
                    self._place_free = trio.Event()
                    await self._place_free.wait()
                    continue
                await trio.sleep_until(await schedule.take(wanted=len(self._queue)))
                self._grant()
        finally:
            self._dispatcher = None

    def _grant(self) -> None:
        """Give a place to the next that waits."""
        waiter = self._queue.pop()
        if waiter is not None:
            waiter.granted = True
            self.in_flight += 1
            waiter.wake()

    def _wake(self) -> None:
        """Give free places to those that wait, or let one of them do so in time with the rate."""
        if self._schedule is None:
            while self._queue and self.in_flight < int(self.concurrency.limit):
                self._grant()
        elif self._dispatcher is None:
            waiter = self._queue.peek()
            if waiter is not None:
                waiter.wake()
        self._place_free.set()

    def _lack(self, seconds: float) -> str:
        if self._schedule is not None:
            return f"the PSP's rate limit leaves no slot within {seconds:g} s"
        return f"the limit of concurrent calls to the PSP leaves no place within {seconds:g} s"

    def _retry_after(self, turn: Turn) -> float:
        return min(max(self.wait_seconds(turn) + self.interval_seconds, 1.0), RETRY_SECONDS_MAX)
