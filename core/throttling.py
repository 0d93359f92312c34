"""Limits the rate and the concurrency of calls to a PSP.

Concurrency adapts by AIMD, additive increase and multiplicative decrease (Chiu and Jain, 1989): every answer raises the limit a
little, and a 429 halves it, at most once a second, so that one burst counts once. The rate is a schedule of evenly spaced slots:
a process reserves a range of the schedule and makes one call in each slot of it. An unused slot is lost, so there are no bursts.
Time is in seconds on any clock that never goes back.
"""

from dataclasses import dataclass

CUT_SECONDS_MIN = 1.0


@dataclass(slots=True)
class AdaptiveLimit:
    """The number of calls that may be under way. `ceiling` is the configured limit; `limit` adapts below it."""

    ceiling: int
    limit: float
    cut_at: float = float("-inf")

    def grow(self) -> None:
        """Record an answer: raise the limit by 1/limit, which adds one after as many answers as the limit."""
        if self.limit < self.ceiling:
            self.limit = min(self.limit + 1 / self.limit, float(self.ceiling))

    def cut(self, *, now: float) -> None:
        """Record a 429: halve the limit."""
        if now - self.cut_at >= CUT_SECONDS_MIN:
            self.cut_at = now
            self.limit = max(self.limit / 2, 1.0)

    def set_ceiling(self, ceiling: int) -> None:
        """Change the ceiling, because the configuration or the number of processes has changed."""
        if self.limit >= self.ceiling or ceiling < self.limit:
            self.limit = float(ceiling)
        self.ceiling = ceiling


@dataclass(slots=True)
class Slots:
    """A reserved range of the schedule: a slot every `interval_seconds` from `next_at` until `ends_at`."""

    interval_seconds: float
    next_at: float = 0.0
    ends_at: float = 0.0

    def take(self, *, now: float) -> float | None:
        """Take the next slot and return its time, or None if the range is used up."""
        at = max(self.next_at, now)
        if at >= self.ends_at:
            return None
        self.next_at = at + self.interval_seconds
        return at

    def take_now(self, *, now: float) -> bool:
        """Take a slot whose time has come. Returns whether there was one."""
        return self.next_at <= now and self.take(now=now) is not None


@dataclass(slots=True)
class TokenBucket:
    """A token bucket: `per_second` tokens come in, up to `burst`, and each request takes one."""

    per_second: float
    burst: float
    tokens: float
    at: float

    def take(self, *, now: float) -> float:
        """Take a token. Returns 0, or the seconds until there will be one, taking none."""
        self.tokens = min(self.tokens + (now - self.at) * self.per_second, self.burst)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.per_second
