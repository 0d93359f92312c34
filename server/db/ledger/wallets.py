"""Wallets: reading current or past balances, and rebuilding them from the ledger."""

from dataclasses import dataclass
from datetime import datetime

import msgspec

from core.ids import MerchantId
from server.db.connection import Connection
from server.db.merchants.audit import Act, record_act


class Wallet(msgspec.Struct, frozen=True):
    """A merchant's balance in one currency, in minor units."""

    currency: str
    kind: str
    balance: int


async def list_wallets(connection: Connection, merchant_id: MerchantId) -> list[Wallet]:
    """A merchant's wallets, by currency and kind."""
    rows = await connection.query(
        "SELECT currency, kind, balance_minor FROM wallets WHERE merchant_id = $1 ORDER BY currency, kind", merchant_id
    )
    return [_wallet(*row) for row in rows]


async def wallets_at(connection: Connection, merchant_id: MerchantId, at: datetime) -> list[Wallet]:
    """A merchant's wallets as they were, computed from the ledger entries posted up to and including that time."""
    rows = await connection.query(
        """
        SELECT currency, kind, sum(amount_minor)::bigint FROM wallet_adjustments
         WHERE merchant_id = $1 AND created_at <= $2 GROUP BY currency, kind ORDER BY currency, kind
        """,
        merchant_id,
        at,
    )
    return [_wallet(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Correction:
    """A wallet that was not the sum of its entries."""

    currency: str
    kind: str
    was_minor: int | None
    is_minor: int


async def rebuild_wallets(connection: Connection, merchant_id: MerchantId, act: Act) -> list[Correction]:
    """Set every wallet of a merchant to the sum of its entries. Returns the wallets that were wrong.

    The merchant's sequence is locked first, so nothing is posted meanwhile. The act is audited even if nothing was wrong.
    """
    async with connection.atomic():
        await connection.query("SELECT 1 FROM merchant_sequences WHERE merchant_id = $1 FOR UPDATE", merchant_id)
        rows = await connection.query(
            """
            WITH right_ones AS (
                SELECT currency, kind, sum(amount_minor)::bigint AS balance_minor
                  FROM wallet_adjustments WHERE merchant_id = $1 GROUP BY currency, kind
            ), was AS (
                SELECT currency, kind, balance_minor FROM wallets WHERE merchant_id = $1 ORDER BY currency, kind FOR UPDATE
            ), written AS (
                INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
                SELECT $1, currency, kind, coalesce(r.balance_minor, 0), $2
                  FROM right_ones r FULL JOIN was USING (currency, kind)
                 WHERE r.balance_minor IS DISTINCT FROM was.balance_minor ORDER BY currency, kind
                ON CONFLICT (merchant_id, currency, kind)
                DO UPDATE SET balance_minor = excluded.balance_minor, updated_at = excluded.updated_at
                RETURNING currency, kind, balance_minor
            )
            SELECT n.currency, n.kind, was.balance_minor, n.balance_minor
              FROM written n LEFT JOIN was USING (currency, kind) ORDER BY n.currency, n.kind
            """,
            merchant_id,
            act.at,
        )
        await record_act(connection, act)
    return [Correction(currency, _short(kind), was, now) for currency, kind, was, now in rows]


def _wallet(currency: str, kind: str, balance: int) -> Wallet:
    return Wallet(currency, _short(kind), balance)


def _short(kind: str) -> str:
    return kind.removeprefix("merchant_")
