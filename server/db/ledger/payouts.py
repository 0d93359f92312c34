"""Payouts: the rows."""

from datetime import datetime
from typing import Any
from uuid import UUID

from core.errors import NotFound
from core.ids import PAYOUT, MerchantId, PayoutId, encode_id
from core.money import Money
from core.payout import Payout, PayoutStatus
from server.db.connection import Connection

LIST_MAX = 1_000
_FIELDS = (
    "merchant_id",
    "id",
    "amount_minor",
    "currency",
    "status",
    "requested_by",
    "approved_by",
    "reference",
    "failure",
    "created_at",
    "updated_at",
)
_COLUMNS = ", ".join(_FIELDS)


def _payout(row: tuple[Any, ...]) -> Payout:
    values = dict(zip(_FIELDS, row, strict=True))
    money = Money(values.pop("amount_minor"), values.pop("currency"))
    return Payout(**{**values, "money": money, "status": PayoutStatus(values["status"])})


async def insert_payout(connection: Connection, payout: Payout, operator_id: UUID | None) -> None:
    """Store a new payout, in the caller's transaction."""
    await connection.run(
        """
        INSERT INTO payouts (
            merchant_id, id, amount_minor, currency, status, requested_by, created_at, updated_at, requested_by_id)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)
        """,
        payout.merchant_id,
        payout.id,
        payout.money.amount_minor,
        payout.money.currency,
        payout.status.value,
        payout.requested_by,
        payout.created_at,
        operator_id,
    )


async def lock_payout(connection: Connection, merchant_id: MerchantId, payout_id: PayoutId) -> Payout:
    """The payout, locked until the transaction ends. Raises `NotFound`."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM payouts WHERE merchant_id = $1 AND id = $2 FOR UPDATE",  # noqa: S608 - own columns
        merchant_id,
        payout_id,
    )
    if not rows:
        raise NotFound(f"there is no payout {encode_id(PAYOUT, payout_id)}")
    return _payout(rows[0])


async def store_payout(connection: Connection, payout: Payout, *, approved_by_id: UUID | None = None) -> None:
    """Store a payout after a step. The database refuses an approval by the operator who has requested it."""
    now: datetime = payout.updated_at
    await connection.run(
        """
        UPDATE payouts
           SET status = $3, approved_by = $4, reference = $6,
               approved_at = CASE WHEN $4::text IS NULL THEN NULL ELSE coalesce(approved_at, $5) END,
               failure = $7, updated_at = $5, approved_by_id = coalesce($8, approved_by_id)
         WHERE merchant_id = $1 AND id = $2
        """,
        payout.merchant_id,
        payout.id,
        payout.status.value,
        payout.approved_by,
        now,
        payout.reference,
        payout.failure,
        approved_by_id,
    )


async def list_payouts(connection: Connection, merchant_id: MerchantId | None) -> list[Payout]:
    """Payouts of one merchant or of all, newest first, at most `LIST_MAX`."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM payouts WHERE $1::uuid IS NULL OR merchant_id = $1 ORDER BY id DESC LIMIT $2",  # noqa: S608 - own columns
        merchant_id,
        LIST_MAX,
    )
    return [_payout(row) for row in rows]


async def unapproved_payouts(connection: Connection, *, before: datetime, limit: int) -> list[Payout]:
    """Payouts that were requested before then, and that nobody has approved."""
    rows = await connection.query(
        f"""
        SELECT {_COLUMNS} FROM payouts WHERE status = 'PENDING' AND approved_by IS NULL AND created_at < $1
         ORDER BY created_at LIMIT $2
        """,  # noqa: S608 - own columns
        before,
        limit,
    )
    return [_payout(row) for row in rows]


async def find_payout_owner(connection: Connection, payout_id: PayoutId) -> MerchantId:
    """The merchant of a payout, for an operator who has only its id. Raises `NotFound`."""
    rows = await connection.query(
        """
        SELECT m.merchant_id FROM merchants m
         WHERE EXISTS (SELECT FROM payouts p WHERE p.merchant_id = m.merchant_id AND p.id = $1)
        """,
        payout_id,
    )
    if not rows:
        raise NotFound(f"there is no payout {encode_id(PAYOUT, payout_id)}: `florin payout list` shows them")
    return MerchantId(rows[0][0])
