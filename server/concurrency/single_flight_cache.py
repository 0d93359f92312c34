"""What is looked up for nearly every request and seldom changes: remembered for a moment, and looked up once at a time.

Without that, all who come when a value has just grown old look it up together, and the database pays for each of them.
Invariants: a value is at most `seconds` old; at most `most` are remembered; a look-up that fails fails for all who waited for it,
and one that is cancelled for nobody but its own caller.
"""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Flight(Generic[V]):
    __slots__ = ("ended", "error", "found")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.found: list[V] = []
        self.error: Exception | None = None


class SingleFlightCache(Generic[K, V]):
    """Values by key. `find` looks one up; what it raises is not remembered, nor what `keeps` says no to."""

    def __init__(
        self, find: Callable[[K], Awaitable[V]], *, seconds: float, most: int, keeps: Callable[[V], bool] = lambda _: True
    ) -> None:
        self._find = find
        self._keeps = keeps
        self._seconds = seconds
        self._most = most
        self._known: dict[K, tuple[V, float]] = {}
        self._flights: dict[K, _Flight[V]] = {}

    def get(self, key: K, *, now: float) -> V | None:
        """The value if it is known and young enough, without waiting; `now` is trio's."""
        known = self._known.get(key)
        return known[0] if known is not None and now < known[1] else None

    def last(self, key: K) -> V | None:
        """The value as it was when it was last looked up, however old."""
        known = self._known.get(key)
        return known[0] if known is not None else None

    def forget(self, key: K) -> None:
        """It has changed."""
        self._known.pop(key, None)

    async def look_up(self, key: K) -> V:
        """The value, from a look-up of one's own or of another who has just begun one."""
        while (flight := self._flights.get(key)) is not None:
            await flight.ended.wait()
            if flight.error is not None:
                raise flight.error.with_traceback(None)  # else it would grow by each who waited
            if flight.found:
                return flight.found[0]
        flight = self._flights[key] = _Flight()
        began = trio.current_time()
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
                self._known[key] = (value, began + self._seconds)
            return value
        finally:
            del self._flights[key]
            flight.ended.set()
