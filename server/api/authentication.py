"""Authenticates callers by API key, looked up by hash in a short-lived cache."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import trio

from core.api_keys import require_usable
from core.errors import Unauthenticated
from core.ids import MerchantId
from server.api.routing import Caller
from server.concurrency.single_flight_cache import SingleFlightCache, Validity
from server.credentials import key_hash, merchant_of_key
from server.db.merchants.api_keys import find_key_owner
from server.db.pool import Pool
from server.http.asgi import Scope, header

CACHE_SECONDS = 2.0
"""The time for which a worker that has just seen a key may still accept it after it was revoked."""

CACHE_MAX = 10_000


class Authentication:
    """Finds the merchant of a request, and remembers which keys were used."""

    def __init__(self, pool: Pool, validity: Validity, *, now: Callable[[], datetime]) -> None:
        self._pool = pool
        self._now = now
        self.used: dict[tuple[MerchantId, UUID], None] = {}
        self._callers = SingleFlightCache(self._find, seconds=CACHE_SECONDS, most=CACHE_MAX, validity=validity)

    async def caller_of(self, scope: Scope) -> Caller:
        """Return the caller of a request. Raises `Unauthenticated`."""
        scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("send your API key as `Authorization: Bearer fl_...`", code="api_key_missing")
        merchant_id = merchant_of_key(key)
        if merchant_id is None:
            raise Unauthenticated("this is not a Florin API key", code="api_key_unknown")
        digest = key_hash(key)
        caller = self._callers.get((merchant_id, digest), now=trio.current_time())
        if caller is None:
            caller = await self._callers.look_up((merchant_id, digest))
        if caller.expires_at is not None or caller.networks:
            client = scope["client"][0] if scope["client"] else None
            require_usable(caller.networks, caller.expires_at, client=client, now=self._now())
        self.used[merchant_id, caller.key_id] = None
        return caller

    async def _find(self, named: tuple[MerchantId, bytes]) -> Caller:
        merchant_id, digest = named
        async with self._pool.connection() as connection:
            owner = await find_key_owner(connection, merchant_id, secret_sha256=digest)
        if owner is None:
            self._callers.forget(named)
            raise Unauthenticated("this API key is unknown or was revoked", code="api_key_unknown")
        return Caller(owner.merchant, owner.key_id, owner.requests_per_second_max, owner.scopes, owner.networks, owner.expires_at)

    def take_used(self) -> list[tuple[MerchantId, UUID]]:
        """The keys that were used since the last call, at most `CACHE_MAX`."""
        used, self.used = self.used, {}
        return list(used)[:CACHE_MAX]
