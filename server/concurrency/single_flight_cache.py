"""A bounded TTL cache with single-flight loading, for values that nearly every request needs and that seldom change.

Without single flight, all callers that find an expired value load it at the same time, and the database pays for each of them.
Invariants: a value is at most `seconds` old, or `KEPT_SECONDS` while it is known that nothing has changed (`Validity`); at most
`most` values are kept; a failed load fails for every caller that waited for it, and a canceled one only for its own caller.
"""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

KEPT_SECONDS = 60.0
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Validity:
    """The time for which loaded values are known to be current: `generation` counts the changes, of which there are no others
    before `until`.
    """

    __slots__ = ("generation", "until")

    def __init__(self) -> None:
        self.generation = 0
        self.until = float("-inf")

    def end(self) -> None:
        """Something has changed: what was loaded before now may be old."""
        self.generation += 1

    def extend(self, *, until: float) -> None:
        """Nothing else has changed, as far as it matters before that time."""
        self.until = until


class _Flight(Generic[V]):
    __slots__ = ("ended", "error", "found")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.found: list[V] = []
        self.error: Exception | None = None


class SingleFlightCache(Generic[K, V]):
    """Values by key. `find` loads one; nothing is kept if it raises or if `keeps` returns False.

    While `validity` holds, values that `lasts` are kept for longer than `seconds`.
    """

    def __init__(
        self,
        find: Callable[[K], Awaitable[V]],
        *,
        seconds: float,
        most: int,
        keeps: Callable[[V], bool] = lambda _: True,
        validity: Validity | None = None,
        lasts: Callable[[V], bool] = lambda _: True,
    ) -> None:
        self._find = find
        self._keeps = keeps
        self._seconds = seconds
        self._most = most
        self._validity = validity or Validity()
        self._lasts = lasts
        self._known: dict[K, tuple[V, float, int]] = {}
        self._flights: dict[K, _Flight[V]] = {}

    def get(self, key: K, *, now: float) -> V | None:
        """Return the value if it is present and fresh, without waiting. `now` is trio's time."""
        known = self._known.get(key)
        if known is None:
            return None
        value, loaded_at, generation = known
        if now < loaded_at + self._seconds:
            return value
        validity = self._validity
        is_current = generation == validity.generation and now < validity.until and now < loaded_at + KEPT_SECONDS
        return value if is_current and self._lasts(value) else None

    def last(self, key: K) -> V | None:
        """Return the value as last loaded, however old."""
        known = self._known.get(key)
        return known[0] if known is not None else None

    def forget(self, key: K) -> None:
        """Drop a value that has changed."""
        self._known.pop(key, None)

    async def look_up(self, key: K) -> V:
        """Return the value, loading it or joining a load that has just started."""
        while (flight := self._flights.get(key)) is not None:
            await flight.ended.wait()
            if flight.error is not None:
                raise flight.error.with_traceback(None)  # otherwise it would grow with each waiting caller
            if flight.found:
                return flight.found[0]
        flight = self._flights[key] = _Flight()
        began, generation = trio.current_time(), self._validity.generation
        try:
            value = await self._find(key)
        except Exception as error:
            flight.error = error
            raise
        else:
            self._known.pop(key, None)
            if self._keeps(value):
                flight.found.append(value)
                if len(self._known) >= self._most:
                    self._known.clear()
                self._known[key] = (value, began, generation)
            return value
        finally:
            del self._flights[key]
            flight.ended.set()
