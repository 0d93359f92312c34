"""When the next item of a batch may begin: not faster than its PSP may be asked, so that items wait here, where waiting costs
nothing.

An item that began and then found no room at the PSP would have opened a payment for nothing. A tenth of the room is left to the
payments of customers, who are there and wait.
"""

from collections.abc import Callable

import trio

from core.ids import PspAccountId
from server.db.merchants import Merchant
from server.flows.batch_item import Item
from server.psp.guard import Guard
from server.psp.routing import Routing

LOOK_SECONDS = 0.02


class Pace:
    """The pace of one batch. `under_way` is how many of its items are."""

    def __init__(self, psps: Routing, merchant: Merchant, under_way: Callable[[], int]) -> None:
        self._psps = psps
        self._merchant = merchant
        self._under_way = under_way
        self._next_at = float("-inf")

    async def turn(self, item: Item) -> None:
        """Wait until the item may begin."""
        charge = item.charge
        account_ids = self._merchant.accounts_for(charge.money) if charge is not None else [self._merchant.psp_account_id]
        while True:
            guards = self._guards(account_ids)
            if not guards:
                return  # the item says what is wrong
            free = next((guard for guard in guards if guard.is_healthy and self._has_room(guard)), None)
            if free is not None:
                break
            await trio.sleep(LOOK_SECONDS)
        if free.interval_seconds:
            await trio.sleep_until(self._next_at)
            self._next_at = max(self._next_at, trio.current_time() - LOOK_SECONDS) + free.interval_seconds

    def _guards(self, account_ids: "list[PspAccountId] | tuple[PspAccountId, ...]") -> list[Guard]:
        adapters = {adapter.account_id: adapter for adapter in self._psps.adapters}
        return [adapters[one].guard for one in account_ids if one in adapters]

    def _has_room(self, guard: Guard) -> bool:
        return not guard.is_crowded and self._under_way() < guard.room
