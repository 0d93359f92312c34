"""Reads refunds, and claims those that are due."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from core.ids import MerchantId, PaymentId, PspAccountId, RefundId
from core.money import Money
from core.refund import Refund, RefundStatus
from server.db import json_records
from server.db.connection import Connection

REFUNDS_MAX = 1_000
"""The most refunds of one payment in a list. A refund takes at least one minor unit, so there could be very many."""

UNSETTLED_OF = """
SELECT r.id FROM refunds r
 WHERE r.merchant_id = p.merchant_id AND r.payment_id = p.id AND r.status IN ('PENDING', 'UNKNOWN')
"""
"""The refunds of payment `p` whose outcome is open, for a condition: if they fail, the payment has the money after all."""


class StoredRefund(msgspec.Struct, frozen=True):
    """A refund as it is selected. A field with the name of a refund's field is that field."""

    merchant_id: MerchantId
    payment_id: PaymentId
    id: RefundId
    psp_account_id: PspAccountId
    amount_minor: int
    currency: str
    status: str
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    from_pending_minor: int
    fee_minor: int
    reason: str | None
    reference: str | None
    failure_code: str | None
    is_accepted: bool
    checks: int
    is_operators_word: bool


_COLUMNS = json_records.select_list(StoredRefund, "r")
assert set(Refund.__struct_fields__) - {"money"} <= set(StoredRefund.__struct_fields__), "a field is not read"


def _refund(row: Sequence[Any]) -> Refund:
    record = StoredRefund(*row)
    return Refund(
        merchant_id=record.merchant_id,
        payment_id=record.payment_id,
        id=record.id,
        psp_account_id=record.psp_account_id,
        money=Money(record.amount_minor, record.currency),
        status=RefundStatus(record.status),
        created_at=record.created_at,
        updated_at=record.updated_at,
        due_at=record.due_at,
        from_pending_minor=record.from_pending_minor,
        fee_minor=record.fee_minor,
        reason=record.reason,
        reference=record.reference,
        failure_code=record.failure_code,
        is_accepted=record.is_accepted,
        checks=record.checks,
        is_operators_word=record.is_operators_word,
    )


async def find_refund(
    connection: Connection, merchant_id: MerchantId, payment_id: PaymentId, refund_id: RefundId
) -> Refund | None:
    """Return the payment's refund, or None if there is none."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM refunds r WHERE r.merchant_id = $1 AND r.payment_id = $2 AND r.id = $3",  # noqa: S608 - own columns
        merchant_id,
        payment_id,
        refund_id,
    )
    return _refund(rows[0]) if rows else None


async def list_refunds(connection: Connection, merchant_id: MerchantId, payment_id: PaymentId) -> list[Refund]:
    """A payment's refunds, oldest first, at most `REFUNDS_MAX`."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM refunds r WHERE r.merchant_id = $1 AND r.payment_id = $2 ORDER BY r.id LIMIT $3",  # noqa: S608 - own columns
        merchant_id,
        payment_id,
        REFUNDS_MAX,
    )
    return [_refund(row) for row in rows]


async def merchants_with_due_refunds(connection: Connection, *, limit: int) -> list[MerchantId]:
    """Merchants with refunds that a job has to look at now."""
    rows = await connection.query(
        "SELECT merchant_id FROM refunds WHERE due_at <= now() GROUP BY merchant_id ORDER BY min(due_at) LIMIT $1", limit
    )
    return [MerchantId(row[0]) for row in rows]


async def claim_due_refunds(connection: Connection, merchant_id: MerchantId, *, limit: int, lease_seconds: float) -> list[Refund]:
    """Claim due refunds of one merchant for `lease_seconds`. No other worker gets them until then."""
    rows = await connection.query(
        f"""
        WITH due AS (
            SELECT payment_id, id FROM refunds WHERE merchant_id = $1 AND due_at <= now()
             ORDER BY payment_id, id LIMIT $2 FOR UPDATE
        )
        UPDATE refunds r SET due_at = now() + make_interval(secs => $3::float8)
          FROM due WHERE r.merchant_id = $1 AND r.payment_id = due.payment_id AND r.id = due.id AND r.due_at <= now()
        RETURNING {_COLUMNS}
        """,  # noqa: S608 - own columns
        merchant_id,
        limit,
        lease_seconds,
    )
    return [_refund(row) for row in rows]


async def postpone_refund(connection: Connection, refund: Refund, *, due_at: datetime | None) -> None:
    """Set when to look next at a refund that was just checked without news."""
    await connection.run(
        """
        UPDATE refunds SET due_at = greatest($4, now() + interval '5 seconds')
         WHERE merchant_id = $1 AND payment_id = $2 AND id = $3 AND due_at IS NOT NULL
        """,
        refund.merchant_id,
        refund.payment_id,
        refund.id,
        due_at,
    )
