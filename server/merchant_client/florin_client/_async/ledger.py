"""Balances, the account statement and receipt keys."""

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

from florin_client._async.pages import whole
from florin_client._async.transport import AsyncTransport
from florin_client._decoding import decode_json
from florin_client._requests import Request, with_query
from florin_client.resources import Movement, Wallet

STATEMENT_SECONDS = 300


class AsyncLedger:
    """`/v1/wallets`, `/v1/statement` and `/v1/receipt-keys`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def wallets(self, *, at: datetime | None = None) -> tuple[Wallet, ...]:
        """Return the balances, now or as they were `at` a time with a time zone."""
        path = with_query("/v1/wallets", {"at": at.isoformat() if at is not None else None})
        return await whole(self._transport, path, Wallet)

    async def statement(
        self, *, start: datetime | None = None, end: datetime | None = None, currency: str | None = None
    ) -> AsyncGenerator[Movement, None]:
        """Yield every movement from `start` on and before `end`, oldest first. It is complete only if no exception ends it."""
        query = {
            "from": start.isoformat() if start is not None else None,
            "to": end.isoformat() if end is not None else None,
            "currency": currency,
        }
        request = Request("GET", with_query("/v1/statement", query), str, timeout_seconds=STATEMENT_SECONDS)
        async with contextlib.aclosing(self._transport.lines(request)) as lines:
            async for line in lines:
                yield decode_json(Movement, line)  # noqa: ASYNC119 - `aclosing` is what closes it

    async def receipt_keys(self) -> dict[str, Any]:
        """Return the public keys of receipts, a JWK set. `florin receipt verify` and every JOSE library read it."""
        return await self._transport.call(Request("GET", "/v1/receipt-keys", dict[str, Any]))
