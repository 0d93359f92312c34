"""The PSP accounts of a worker: adapters that are made again when an account changes, and guards that persist.

An account whose secrets cannot be opened is left out and does not affect the others.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

import structlog

from core.errors import NotFound
from core.ids import PSP_ACCOUNT, PspAccountId, encode_id
from server.db.database import Database
from server.db.psps.accounts import PspAccount, list_psp_accounts
from server.db.psps.shared_state import claim_probe, reserve_slot_soon, reserve_slots
from server.http.client.client import Client
from server.http.reaper import TICK_SECONDS
from server.psp.adapter import Adapter
from server.psp.guard import Guard, Limits
from server.psp.providers import PROVIDERS, Provider, provider_of
from server.psp.rate_schedule import Shared
from server.psp.transport import Deadlines, PspTransport
from server.sealing import Sealer, SealError
from server.settings import Settings
from server.telemetry import Metrics

ADMISSION_SHARE = 0.4
"""The part of a call's time that it may spend waiting for its turn."""

OWN_SHARE = 0.9
"""The part of a flow's time for a PSP that one call may use."""

_log = structlog.get_logger()


def deadlines_of(settings: Settings) -> Deadlines:
    """Our own deadlines, which end before those of the flows, so that a call ends with what is known about it."""
    # With the interval of the client's reaper added, a call has still ended when the flow's time is over.
    seconds = min(OWN_SHARE * settings.psp_seconds, max(settings.psp_seconds - TICK_SECONDS, settings.psp_seconds / 2))
    connect_seconds = min(settings.connect_seconds, settings.psp_seconds / 2)
    read_seconds = min(settings.psp_read_seconds, seconds)
    return Deadlines(seconds=seconds, read_seconds=read_seconds, connect_seconds=connect_seconds)


class Accounts:
    """Makes the adapters. `Routing` calls `load`."""

    def __init__(
        self,
        db: Database,
        http: Client,
        sealer: Sealer,
        metrics: Metrics,
        deadlines: Deadlines,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._db = db
        self._http = http
        self._sealer = sealer
        self._metrics = metrics
        self._deadlines = deadlines
        self._now = now
        self._rng = random.Random()  # noqa: S311 - jitter
        self._guards: dict[PspAccountId, Guard] = {}
        self._made: dict[PspAccountId, tuple[PspAccount, Adapter | None]] = {}

    async def load(self) -> Sequence[Adapter]:
        """The adapters of all usable accounts. Raises `SealError` if none can be opened."""
        async with self._db.pool.connection() as connection:
            stored = await list_psp_accounts(connection)
        now = self._now()
        accounts = [
            account
            if account.old_secret_until is None or account.old_secret_until > now
            else replace(account, sealed_old_secret=None)
            for account in stored
        ]
        for account in accounts:
            known = self._made.get(account.id)
            if known is None or known[0] != account:
                self._made[account.id] = account, self._adapter(account)
        adapters = [adapter for account in accounts if (adapter := self._made[account.id][1]) is not None]
        if not adapters and any(account.psp in PROVIDERS for account in accounts):
            raise SealError("this sealing key opens no PSP account: check that it is the right key file")
        return adapters

    def _adapter(self, account: PspAccount) -> Adapter | None:
        try:
            provider = provider_of(account.psp)
            api_key = self._sealer.open(account.sealed_api_key, table="psp_accounts.api_key", row=account.id)
            sealed = [account.sealed_webhook_secret, account.sealed_old_secret]
            secrets = tuple(
                self._sealer.open(one, table="psp_accounts.webhook_secret", row=account.id) for one in sealed if one is not None
            )
        except (SealError, NotFound) as error:
            _log.error("a PSP account cannot be used", account=encode_id(PSP_ACCOUNT, account.id), error=str(error))
            return None
        return provider.make_adapter(
            self._transport(account, provider, api_key),
            account_id=account.id,
            webhook_secrets=secrets,
            mode=account.mode,
            is_enabled=account.enabled,
            token_scope=account.tokens_of or account.id,
            now=self._now,
        )

    def _transport(self, account: PspAccount, provider: Provider, api_key: str) -> PspTransport:
        return PspTransport(
            self._http,
            self._guard(account),
            base_url=account.base_url,
            headers=provider.headers(api_key),
            deadlines=self._deadlines,
            observe=partial(self._metrics.psp_called, encode_id(PSP_ACCOUNT, account.id), account.psp),
            rng=self._rng,
            retry_header=provider.retry_header,
        )

    def _guard(self, account: PspAccount) -> Guard:
        rate = account.requests_per_second_max
        limits = Limits(concurrency=account.concurrency_max, requests_per_second=float(rate) if rate is not None else None)
        guard = self._guards.get(account.id)
        if guard is not None:
            guard.move(limits)
            return guard
        shared = Shared(
            reserve=partial(self._reserve, account.id),
            reserve_soon=partial(self._reserve_soon, account.id),
            may_probe=partial(self._may_probe, account.id),
        )
        guard = self._guards[account.id] = Guard(limits, shared, admission_seconds_max=ADMISSION_SHARE * self._deadlines.seconds)
        self._metrics.watch_psp(
            encode_id(PSP_ACCOUNT, account.id),
            account.psp,
            state=lambda: guard.state,
            in_flight=lambda: guard.in_flight,
            waiting=lambda: guard.waiting,
            limit=lambda: guard.concurrency.limit,
        )
        return guard

    async def _reserve(self, account_id: PspAccountId, slots: int, interval_seconds: float) -> float:
        async with self._db.pool.connection() as connection:
            return await reserve_slots(connection, account_id, slots=slots, interval_seconds=interval_seconds)

    async def _reserve_soon(self, account_id: PspAccountId, interval_seconds: float) -> float | None:
        async with self._db.pool.connection() as connection:
            return await reserve_slot_soon(connection, account_id, interval_seconds=interval_seconds)

    async def _may_probe(self, account_id: PspAccountId) -> bool:
        async with self._db.pool.connection() as connection:
            return await claim_probe(connection, account_id)
