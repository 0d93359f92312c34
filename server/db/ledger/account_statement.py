"""The account statement of a merchant: every movement of its wallets, in pages, with the balance after each."""

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
    """One line; amounts in minor units. `balance` is the wallet's balance after it."""

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
    """The selected movements: posted at or after `start` and before `end`, where None means no bound. `currency` None
    means all.
    """

    start: datetime | None = None
    end: datetime | None = None
    currency: str | None = None


async def movements(pool: Pool, merchant_id: MerchantId, period: Period) -> AsyncIterator[list[Movement]]:
    """The movements of a period, oldest first, in pages. No connection is held between two pages.

    Entries are numbered in the order of their commits, but their times come from the workers' clocks, so an entry outside the
    period may lie between two inside. It is left out, but its amount is in the balance, so a line has the same balance whatever
    the period.
    """
    async with pool.connection() as connection:
        first, last = await _bounds(connection, merchant_id, period)
        balances = await _balances_before(connection, merchant_id, first)
    while first <= last:
        async with pool.connection() as connection:
            rows = await connection.query(
                """
                SELECT seq, created_at, currency, account, kind, amount_minor, payment_id, transfer_id
                  FROM ledger_entries
                 WHERE merchant_id = $1 AND seq BETWEEN $2 AND $3 AND account IN ('merchant_available', 'merchant_pending')
                 ORDER BY seq LIMIT $4
                """,
                merchant_id,
                first,
                last,
                PAGE,
            )
        page = []
        for number, created_at, currency, account, kind, amount, payment_id, transfer_id in rows:
            balance = balances[currency, account] = balances.get((currency, account), 0) + amount
            wallet = account.removeprefix("merchant_")
            if _is_inside(period, created_at, currency):
                page.append(Movement(number, created_at, currency, wallet, kind, amount, balance, payment_id, transfer_id))
        if page:
            yield page
        first = rows[-1][0] + 1 if rows else last + 1


def _is_inside(period: Period, created_at: datetime, currency: str) -> bool:
    is_early = period.start is not None and created_at < period.start
    is_late = period.end is not None and created_at >= period.end
    return not is_early and not is_late and period.currency in (None, currency)


async def _bounds(connection: Connection, merchant_id: MerchantId, period: Period) -> tuple[int, int]:
    """The first and the last number of the period's entries; the first is greater if there are none."""
    rows = await connection.query(
        """
        SELECT min(seq), max(seq) FROM ledger_entries
         WHERE merchant_id = $1 AND account IN ('merchant_available', 'merchant_pending')
           AND ($2::timestamptz IS NULL OR created_at >= $2) AND ($3::timestamptz IS NULL OR created_at < $3)
        """,
        merchant_id,
        period.start,
        period.end,
    )
    first, last = rows[0]
    return (first, last) if first is not None else (1, 0)


async def _balances_before(connection: Connection, merchant_id: MerchantId, seq: int) -> dict[tuple[str, str], int]:
    rows = await connection.query(
        """
        SELECT currency, account, sum(amount_minor)::bigint FROM ledger_entries
         WHERE merchant_id = $1 AND seq < $2 AND account IN ('merchant_available', 'merchant_pending')
         GROUP BY currency, account
        """,
        merchant_id,
        seq,
    )
    return {(currency, account): balance for currency, account, balance in rows}
