"""The statement of a merchant: every movement of its wallets, a page at a time, with the balance after each."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from core.ids import MerchantId, PaymentId
from server.db.connection import Connection
from server.db.pool import Pool

PAGE = 1_000


class Movement(msgspec.Struct, frozen=True):
    """One line; amounts in minor units. `balance` is that of the wallet after it."""

    seq: int
    created_at: datetime
    currency: str
    wallet: str
    reason: str
    amount: int
    balance: int
    payment_id: PaymentId | None
    transfer_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Which movements: posted at or after `start` and before `end`; None is no bound. `currency` None is all."""

    start: datetime | None = None
    end: datetime | None = None
    currency: str | None = None


async def movements(pool: Pool, merchant_id: MerchantId, period: Period) -> AsyncIterator[list[Movement]]:
    """The movements of a period, oldest first, in pages. No connection is held between two pages."""
    async with pool.connection() as connection:
        balances = await _opening(connection, merchant_id, period)
    seq = 0
    while True:
        async with pool.connection() as connection:
            rows = await connection.query(
                """
                SELECT seq, created_at, currency, account, kind, amount_minor, payment_id, transfer_id
                  FROM ledger_entries
                 WHERE merchant_id = $1 AND seq > $2 AND account IN ('merchant_available', 'merchant_pending')
                   AND ($3::timestamptz IS NULL OR created_at >= $3) AND ($4::timestamptz IS NULL OR created_at < $4)
                   AND ($5::text IS NULL OR currency = $5)
                 ORDER BY seq LIMIT $6
                """,
                merchant_id,
                seq,
                period.start,
                period.end,
                period.currency,
                PAGE,
            )
        if not rows:
            return
        page = []
        for number, created_at, currency, account, kind, amount, payment_id, transfer_id in rows:
            balance = balances[currency, account] = balances.get((currency, account), 0) + amount
            wallet = account.removeprefix("merchant_")
            page.append(Movement(number, created_at, currency, wallet, kind, amount, balance, payment_id, transfer_id))
        yield page
        seq = rows[-1][0]


async def _opening(connection: Connection, merchant_id: MerchantId, period: Period) -> dict[tuple[str, str], int]:
    """The balances at the start of the period."""
    if period.start is None:
        return {}
    rows = await connection.query(
        """
        SELECT currency, kind, sum(amount_minor)::bigint FROM wallet_adjustments
         WHERE merchant_id = $1 AND created_at < $2 GROUP BY currency, kind
        """,
        merchant_id,
        period.start,
    )
    return {(currency, kind): balance for currency, kind, balance in rows}
