"""How fast, and how many at once, a PSP is asked.

Concurrency adapts by AIMD, additive increase and multiplicative decrease (Chiu and Jain, 1989): every answer raises the limit a
little, every 429 halves it, at most once a second, so that one burst counts once. The rate is a schedule of slots: who gets a
share of the schedule may call once in each slot of it, and a slot that was not used in its time is lost, so that there are no
bursts. Time is in seconds on any clock that never goes back.
"""

from dataclasses import dataclass

CUT_SECONDS_MIN = 1.0


@dataclass(slots=True)
class AdaptiveLimit:
    """How many calls may be under way. `ceiling` is what was agreed; `limit` what the PSP bears at the moment."""

    ceiling: int
    limit: float
    cut_at: float = float("-inf")

    def grow(self) -> None:
        """A call was answered: one more, once as many as there may be have been."""
        if self.limit < self.ceiling:
            self.limit = min(self.limit + 1 / self.limit, float(self.ceiling))

    def cut(self, *, now: float) -> None:
        """The PSP said that it was too much."""
        if now - self.cut_at >= CUT_SECONDS_MIN:
            self.cut_at = now
            self.limit = max(self.limit / 2, 1.0)

    def move_ceiling(self, ceiling: int) -> None:
        """What was agreed has changed, or is shared with more or fewer processes."""
        if self.limit >= self.ceiling or ceiling < self.limit:
            self.limit = float(ceiling)
        self.ceiling = ceiling


@dataclass(slots=True)
class Slots:
    """A share of a schedule: one slot each `interval_seconds` from `next_at` until `ends_at`."""

    interval_seconds: float
    next_at: float = 0.0
    ends_at: float = 0.0

    def take(self, *, now: float, before: float) -> float | None:
        """The time of the next slot, which is taken if it is `before` then; None where the share is used up."""
        at = max(self.next_at, now)
        if at >= self.ends_at:
            return None
        if at <= before:
            self.next_at = at + self.interval_seconds
        return at
