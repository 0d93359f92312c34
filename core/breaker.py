"""A circuit breaker: it stops calls to a failing PSP and lets a single probe find out whether the PSP has recovered.

It opens when at least half of at least 20 calls within 30 seconds have failed. After 10 seconds one call is admitted as the
probe: its success closes the breaker, its failure keeps it open for another 10 seconds. Time is in seconds on any clock that
never goes back. While the breaker is open, results of calls admitted earlier are dropped, because they say nothing about
recovery.
"""

from collections import deque
from enum import StrEnum

WINDOW_SECONDS = 30.0
OPEN_SECONDS = 10.0
CALLS_MIN = 20
FAILURES_MIN_SHARE = 0.5


class BreakerState(StrEnum):
    """The state of a breaker. `HALF_OPEN`: the waiting time is over and one probe may go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Admission(StrEnum):
    """The answer to a call that asks for admission."""

    CALL = "call"
    PROBE = "probe"
    REFUSED = "refused"


class Breaker:
    """One breaker."""

    __slots__ = ("_is_probing", "_open_until", "_opened", "_seconds")

    def __init__(self) -> None:
        self._seconds: deque[list[float]] = deque()  # [second, calls, failures], oldest first
        self._opened = False
        self._open_until = 0.0
        self._is_probing = False

    def state(self, *, now: float) -> BreakerState:
        """The current state."""
        if not self._opened:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    def seconds_left(self, *, now: float) -> float:
        """Seconds until a call may be admitted; 0 if one may be admitted now."""
        return max(self._open_until - now, 0.0) if self._opened else 0.0

    def may_call(self, *, now: float) -> bool:
        """Return whether a call would be admitted now, without admitting it."""
        return not self._opened or (now >= self._open_until and not self._is_probing)

    def admit(self, *, now: float) -> Admission:
        """Admit a call or refuse it. A caller that gets PROBE must `record` or `withdraw` it."""
        if not self._opened:
            return Admission.CALL
        if now < self._open_until or self._is_probing:
            return Admission.REFUSED
        self._is_probing = True
        return Admission.PROBE

    def record(self, admission: Admission, *, failed: bool, now: float) -> bool:
        """Record the end of an admitted call. Returns whether the breaker opened, or stays open, because of it."""
        if admission is Admission.PROBE:
            self._is_probing = False
            if failed:
                self.open(until=now + OPEN_SECONDS)
                return True
            self.close()
            return False
        if self._opened:
            return False
        self._count(failed=failed, now=now)
        if not failed:
            return False
        calls = sum(one[1] for one in self._seconds)
        failures = sum(one[2] for one in self._seconds)
        if calls < CALLS_MIN or failures < FAILURES_MIN_SHARE * calls:
            return False
        self.open(until=now + OPEN_SECONDS)
        return True

    def withdraw(self, admission: Admission) -> None:
        """Take back an admission whose call was given up without a result."""
        if admission is Admission.PROBE:
            self._is_probing = False

    def open(self, *, until: float) -> None:
        """Open the breaker or keep it open, for a failure here or because another process opened its own."""
        self._opened = True
        self._open_until = until
        self._seconds.clear()

    def close(self) -> None:
        """Close the breaker, for a probe here or because another process's probe succeeded."""
        self._opened = self._is_probing = False
        self._open_until = 0.0
        self._seconds.clear()

    def _count(self, *, failed: bool, now: float) -> None:
        second = float(int(now))
        if not self._seconds or self._seconds[-1][0] != second:
            while self._seconds and self._seconds[0][0] <= second - WINDOW_SECONDS:
                self._seconds.popleft()
            self._seconds.append([second, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += failed
