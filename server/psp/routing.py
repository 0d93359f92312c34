"""Chooses the PSP account of a payment, and finds the adapter of a payment's account.

Accounts are few and seldom change. They are loaded at the start, once a second by `server.jobs.psp_sync`, and when an unknown one
is asked for; so a kill switch, a rotated secret or a new limit needs no restart.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec
import trio

from core.errors import NotFound, PspUnreachable
from core.ids import PspAccountId
from core.money import Money
from server.psp.adapter import Adapter

RELOAD_SECONDS_MIN = 1.0


class PaymentKind(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of a payment. `by_token`: charged by token, otherwise on a hosted page; `by_hand`: manual capture. A page is open
    for `page_seconds`.
    """

    mode: str
    money: Money
    by_token: bool
    by_hand: bool
    has_return_url: bool
    page_seconds: int


class Routing:
    """The adapters of all accounts. `load` makes them again, keeping their guards."""

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
        """All adapters."""
        return list(self._adapters.values())

    def capable(self, account_ids: Iterable[PspAccountId], wanted: PaymentKind) -> list[Adapter]:
        """Those of the named accounts, in order, that can take such a payment, enabled or not."""
        found: list[Adapter] = []
        for account_id in dict.fromkeys(account_ids):
            adapter = self._adapters.get(account_id)
            if adapter is not None and adapter.mode == wanted.mode and _can(adapter, wanted):
                found.append(adapter)
        return found

    def has_any(self, account_ids: Iterable[PspAccountId], *, mode: str) -> bool:
        """Return whether any of the accounts takes new payments."""
        adapters = (self._adapters.get(account_id) for account_id in account_ids)
        return any(adapter is not None and adapter.is_enabled and adapter.mode == mode for adapter in adapters)

    def loaded(self, account_id: PspAccountId) -> Adapter | None:
        """The adapter of an account that this worker has loaded."""
        return self._adapters.get(account_id)

    async def find(self, account_id: PspAccountId) -> Adapter | None:
        """The adapter of an account. For an unknown one the accounts are reloaded at most once per `RELOAD_SECONDS_MIN`."""
        if account_id not in self._adapters and trio.current_time() - self._loaded_at > RELOAD_SECONDS_MIN:
            await self.reload()
        return self._adapters.get(account_id)

    async def of(self, account_id: PspAccountId) -> Adapter:
        """The adapter of a payment's account. Raises `PspUnreachable` if it does not exist any more."""
        adapter = await self.find(account_id)
        if adapter is None:
            raise PspUnreachable("the payment's PSP account is not configured")
        return adapter

    async def named(self, psp: str, account_id: PspAccountId) -> Adapter:
        """The adapter that a webhook path names. Raises `NotFound`."""
        adapter = await self.find(account_id)
        if adapter is None or adapter.psp != psp:
            raise NotFound("no such PSP account")
        return adapter


def _can(adapter: Adapter, wanted: PaymentKind) -> bool:
    can = adapter.capabilities
    if not adapter.takes(wanted.money) or (wanted.by_hand and not can.manual_capture):
        return False
    if wanted.by_token:
        return can.tokens
    is_too_long = can.page_seconds_max is not None and wanted.page_seconds > can.page_seconds_max
    return can.hosted_page and not is_too_long and (wanted.has_return_url or not can.page_needs_return_url)
