"""A bounded queue that is fair between merchants and serves the urgent first.

Source: deficit round robin (Shreedhar and Varghese, 1996) with equal costs: each call takes one slot, so each merchant with
waiting calls is served in turn, and one merchant's flood delays another merchant's call by one turn a round. More urgent calls go
first, but every `LOWER_EVERY`th place goes to less urgent ones, so those that settle lost payments are never starved.
"""

from collections import OrderedDict
from collections.abc import Hashable
from enum import IntEnum
from typing import Generic, TypeVar

T = TypeVar("T")
LOWER_EVERY = 10


class Urgency(IntEnum):
    """The urgency of a call. INTERACTIVE: a request waits for it. BACKGROUND: a job follows something up."""

    INTERACTIVE = 0
    BACKGROUND = 1
    BATCH = 2


class Entry(Generic[T]):
    """A place in the queue, for `remove`."""

    __slots__ = ("item", "merchant", "urgency")

    def __init__(self, item: T, merchant: Hashable, urgency: Urgency) -> None:
        self.item = item
        self.merchant = merchant
        self.urgency = urgency


class FairQueue(Generic[T]):
    """The queue. At most `waiting_max` entries wait, half of them of one merchant."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._waiting: dict[Urgency, OrderedDict[Hashable, OrderedDict[Entry[T], None]]]
        self._waiting = {urgency: OrderedDict() for urgency in Urgency}
        self._length = 0
        self._served = 0

    def __len__(self) -> int:
        return self._length

    def has_room(self, merchant: Hashable) -> bool:
        """Return whether one more call of the merchant may wait."""
        of_merchant = sum(len(merchants.get(merchant, ())) for merchants in self._waiting.values())
        return self._length < self._waiting_max and of_merchant < max(self._waiting_max // 2, 1)

    def add(self, item: T, *, merchant: Hashable, urgency: Urgency) -> Entry[T]:
        """Add an item; there must be room."""
        assert self.has_room(merchant)
        entry = Entry(item, merchant, urgency)
        self._waiting[urgency].setdefault(merchant, OrderedDict())[entry] = None
        self._length += 1
        return entry

    def ahead_of(self, merchant: Hashable, urgency: Urgency) -> int:
        """The number of waiting entries that will be served before a new one of this merchant, about."""
        alike = {one: len(entries) for one, entries in self._waiting[urgency].items()}
        own = alike.pop(merchant, 0)
        others = sum(min(count, own + 1) for count in alike.values())
        more_urgent = (merchants for one, merchants in self._waiting.items() if one < urgency)
        return own + others + sum(len(entries) for merchants in more_urgent for entries in merchants.values())

    def peek(self) -> T | None:
        """Any item that waits."""
        for merchants in self._waiting.values():
            for entries in merchants.values():
                return next(iter(entries)).item
        return None

    def pop(self) -> T | None:
        """Remove and return the next item, or None if none waits. Its merchant goes to the end of the round."""
        self._served += 1
        order = list(Urgency)
        if self._served % LOWER_EVERY == 0:
            order = [*order[1:], order[0]]
        for urgency in order:
            for merchant, entries in self._waiting[urgency].items():
                self._waiting[urgency].move_to_end(merchant)
                entry = next(iter(entries))
                self.remove(entry)
                return entry.item
        return None

    def remove(self, entry: Entry[T]) -> None:
        """Remove an entry that gives up waiting. Nothing happens if it was served."""
        merchants = self._waiting[entry.urgency]
        entries = merchants.get(entry.merchant)
        if entries is None or entry not in entries:
            return
        del entries[entry]
        self._length -= 1
        if not entries:
            del merchants[entry.merchant]
