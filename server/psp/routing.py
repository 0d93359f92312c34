"""Which account at which PSP a payment goes to, and the adapter of an account that a payment is at.

Accounts are few and change seldom: they are loaded at the start, once a second by `server.jobs.psps`, and when one is asked for
that is not known; so a kill switch, a rotated secret or a new limit needs no restart.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from core.errors import NotFound, PspUnreachable
from core.ids import PspAccountId
from core.money import Money
from server.psp.adapter import Adapter

RELOAD_SECONDS_MIN = 1.0


class Routing:
    """The adapters of all accounts. `load` makes them anew, keeping their guards."""

    def __init__(self, load: Callable[[], Awaitable[Iterable[Adapter]]]) -> None:
        self._load = load
        self._adapters: dict[PspAccountId, Adapter] = {}
        self._loaded_at = float("-inf")

    async def reload(self) -> None:
        """Load the accounts."""
        self._loaded_at = trio.current_time()
        self._adapters = {adapter.account_id: adapter for adapter in await self._load()}

    @property
    def adapters(self) -> Sequence[Adapter]:
        """All of them."""
        return list(self._adapters.values())

    def candidates(
        self, account_ids: Iterable[PspAccountId], *, mode: str, money: Money, by_token: bool, by_hand: bool
    ) -> list[Adapter]:
        """The accounts, of those named and in their order, that can take such a payment and may.

        `by_token`: it is charged by token, else on a hosted page; `by_hand`: it is captured by hand.
        """
        found: list[Adapter] = []
        for account_id in dict.fromkeys(account_ids):
            adapter = self._adapters.get(account_id)
            if adapter is None or not adapter.is_enabled or adapter.mode != mode or not adapter.takes(money):
                continue
            can = adapter.capabilities
            if (can.tokens if by_token else can.hosted_page) and (can.manual_capture or not by_hand):
                found.append(adapter)
        return found

    async def find(self, account_id: PspAccountId) -> Adapter | None:
        """The adapter of an account, looking again for one that is new at most once in `RELOAD_SECONDS_MIN`."""
        if account_id not in self._adapters and trio.current_time() - self._loaded_at > RELOAD_SECONDS_MIN:
            await self.reload()
        return self._adapters.get(account_id)

    async def of(self, account_id: PspAccountId) -> Adapter:
        """The adapter of an account that a payment is at. Raises `PspUnreachable` where it has gone."""
        adapter = await self.find(account_id)
        if adapter is None:
            raise PspUnreachable("the payment's PSP account is not configured")
        return adapter

    async def named(self, psp: str, account_id: PspAccountId) -> Adapter:
        """The adapter that a webhook address names. Raises `NotFound`."""
        adapter = await self.find(account_id)
        if adapter is None or adapter.psp != psp:
            raise NotFound("no such PSP account")
        return adapter
