"""The schedule of an account's rate: this process's slots, from ranges that all processes reserve one after another.

Invariant: together, all processes send at most one call in each interval, and never make up for an interval that nobody used.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from core.errors import DatabaseUnavailable, Overloaded, PspBusy
from core.throttling import Slots

T = TypeVar("T")
SHARE_SECONDS = 0.2
"""The longest range of the schedule that is reserved at once, and so the longest delay of other processes' callers."""

RATE_MARGIN = 0.9
"""Calls are sent at even intervals but do not arrive so; the margin keeps the PSP's own count below the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The state of an account that all processes share, see `server.db.psps.shared_state`.

    `reserve(slots, interval_seconds)` reserves a range of the schedule and returns the seconds until it begins;
    `reserve_soon(interval_seconds)` reserves one slot if it begins within one interval, and returns None otherwise; `may_probe`
    returns whether this process may probe a PSP whose breaker was open.
    """

    reserve: Callable[[int, float], Awaitable[float]]
    reserve_soon: Callable[[float], Awaitable[float | None]]
    may_probe: Callable[[], Awaitable[bool]]


class RateSchedule:
    """The schedule, for `requests_per_second` of all processes together."""

    def __init__(self, requests_per_second: float, shared: Shared) -> None:
        self.interval_seconds = 1 / (requests_per_second * RATE_MARGIN)
        self.others_wait = False
        """True if other processes had reserved ranges in between at the last reservation."""
        self._shared = shared
        self._slots = Slots(self.interval_seconds)
        self._sent_at = float("-inf")

    def take_now(self) -> bool:
        """Take a slot whose time has come. Returns whether there was one in our range."""
        return self._slots.take_now(now=trio.current_time())

    async def take_soon(self) -> float | None:
        """Take the next slot if it begins within one interval. Returns its time. Raises `PspBusy` without the database."""
        now = trio.current_time()
        at = self._slots.take(now=now) if self._slots.next_at <= now + self.interval_seconds else None
        if at is not None:
            return at
        begins_in_seconds = await self._asked(self._shared.reserve_soon(self.interval_seconds))
        return trio.current_time() + begins_in_seconds if begins_in_seconds is not None else None

    async def take(self, *, wanted: int) -> float:
        """Take the next slot, and return its time. Of a new range the rest is for those of the `wanted` that come next.

        Raises `PspBusy` without the database.
        """
        while (at := self._slots.take(now=trio.current_time())) is None:
            count = max(min(wanted, int(SHARE_SECONDS / self.interval_seconds)), 1)
            begins_in_seconds = await self._asked(self._shared.reserve(count, self.interval_seconds))
            now = trio.current_time()
            begins_at = now + begins_in_seconds
            self.others_wait = begins_at - max(self._slots.ends_at, now) > self.interval_seconds
            self._slots.next_at = begins_at
            self._slots.ends_at = begins_at + (count - 0.5) * self.interval_seconds
        return at

    def spaced(self) -> float:
        """The time at which the next call goes, so that calls whose slots had different times do not go at once."""
        self._sent_at = max(trio.current_time(), self._sent_at + RATE_MARGIN * self.interval_seconds)
        return self._sent_at

    async def _asked(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except (DatabaseUnavailable, Overloaded) as error:
            raise PspBusy(f"the PSP's rate cannot be reserved: {error}") from error
