"""Starts a batch's items no faster than their PSP may be called, so that they wait here, where waiting costs nothing.

An item that began and then found no room at the PSP would have opened a payment for nothing. Batch traffic leaves 10 % of the
capacity to interactive payments.
"""

from collections.abc import Callable

import trio

from server.db.merchants.merchants import Merchant
from server.flows.batches.item import Item
from server.flows.contexts import Psps
from server.flows.payments.choose import candidates_for, has_an_account
from server.psp.guard import Guard

LOOK_SECONDS = 0.02
SLACK_SECONDS = 0.02
"""The most unused time that may be made up for."""


class Pace:
    """The pace of one batch. `under_way` counts its items that have begun."""

    def __init__(self, context: Psps, under_way: Callable[[], int]) -> None:
        self._context = context
        self._under_way = under_way
        self._next_at = float("-inf")

    async def turn(self, merchant: Callable[[], Merchant], item: Item) -> None:
        """Wait until the item may begin. Meanwhile the merchant may be stopped or get another account."""
        while True:
            guards = self._guards(merchant(), item)
            if guards is not None and not guards:
                return  # the item reports what is wrong
            needs_health = item.charge is not None  # otherwise its payment may be at another account, and finds that out itself
            free = next((one for one in guards or () if (one.is_healthy or not needs_health) and self._has_room(one)), None)
            if free is not None:
                break
            await trio.sleep(LOOK_SECONDS)
        if free.interval_seconds:
            await trio.sleep_until(self._next_at)
            self._next_at = max(self._next_at, trio.current_time() - SLACK_SECONDS) + free.interval_seconds

    def _guards(self, merchant: Merchant, item: Item) -> list[Guard] | None:
        """The guards of the accounts that the item may go to: empty if waiting makes no sense, None if the merchant has no
        account.
        """
        psps = self._context.psps
        if item.charge is None:
            return [adapter.guard for adapter in psps.adapters if adapter.account_id == merchant.psp_account_id]
        if not merchant.accepts_payments:
            return []
        candidates = candidates_for(self._context, merchant, item.charge)
        enabled = [adapter.guard for adapter in candidates if adapter.is_enabled]
        if not enabled and (candidates or not has_an_account(self._context, merchant)):
            return None
        return enabled

    def _has_room(self, guard: Guard) -> bool:
        return not guard.is_crowded and self._under_way() < guard.room
