"""Which account at which PSP a payment goes to, and the adapter of an account that a payment is at.

Accounts are few and change seldom: they are loaded at the start, again when one is asked for that is not known, and anyway
every half minute in use, so that a rotated secret or a new address needs no restart.
"""

from collections.abc import Awaitable, Callable, Iterable

import trio

from core.errors import NotFound, PspUnreachable
from core.ids import PspAccountId
from server.psp.adapter import Adapter

RELOAD_SECONDS_MIN = 1.0
RELOAD_SECONDS_MAX = 30.0


class Routing:
    """The adapters of all accounts. `load` makes them anew."""

    def __init__(self, load: Callable[[], Awaitable[Iterable[Adapter]]]) -> None:
        self._load = load
        self._adapters: dict[PspAccountId, Adapter] = {}
        self._loaded_at = float("-inf")

    async def reload(self) -> None:
        """Load the accounts."""
        self._loaded_at = trio.current_time()
        self._adapters = {adapter.account_id: adapter for adapter in await self._load()}

    async def find(self, account_id: PspAccountId) -> Adapter | None:
        """The adapter of an account, looking again for one that is new at most once in `RELOAD_SECONDS_MIN`."""
        age_seconds = trio.current_time() - self._loaded_at
        if age_seconds > RELOAD_SECONDS_MAX or (account_id not in self._adapters and age_seconds > RELOAD_SECONDS_MIN):
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
