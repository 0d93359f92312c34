"""Reading refunds, and claiming those that are due."""

from datetime import datetime
from typing import Any

from core.ids import MerchantId, PaymentId, PspAccountId, RefundId
from core.money import Money
from core.refund import Refund, RefundStatus
from server.db.connection import Connection

REFUNDS_MAX = 1_000
"""How many refunds of one payment are listed: a refund takes at least one minor unit, so there could be very many."""

_COLUMNS = """
r.merchant_id, r.payment_id, r.id, r.psp_account_id, r.amount_minor, r.currency, r.status, r.created_at, r.updated_at,
r.due_at, r.from_pending_minor, r.fee_minor, r.reason, r.reference, r.failure_code, r.is_accepted, r.checks
"""


def _refund(row: tuple[Any, ...]) -> Refund:
    return Refund(
        merchant_id=MerchantId(row[0]),
        payment_id=PaymentId(row[1]),
        id=RefundId(row[2]),
        psp_account_id=PspAccountId(row[3]),
        money=Money(row[4], row[5]),
        status=RefundStatus(row[6]),
        created_at=row[7],
        updated_at=row[8],
        due_at=row[9],
        from_pending_minor=row[10],
        fee_minor=row[11],
        reason=row[12],
        reference=row[13],
        failure_code=row[14],
        is_accepted=row[15],
        checks=row[16],
    )


async def find_refund(
    connection: Connection, merchant_id: MerchantId, payment_id: PaymentId, refund_id: RefundId
) -> Refund | None:
    """The payment's refund; None where there is none."""
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
    """Whose refunds a job has to look at now."""
    rows = await connection.query(
        "SELECT merchant_id FROM refunds WHERE due_at <= now() GROUP BY merchant_id ORDER BY min(due_at) LIMIT $1", limit
    )
    return [MerchantId(row[0]) for row in rows]


async def claim_due_refunds(connection: Connection, merchant_id: MerchantId, *, limit: int, lease_seconds: float) -> list[Refund]:
    """Take due refunds of one merchant for `lease_seconds`; nobody else gets them until then."""
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
    """Set when to look next at a refund that was just looked at, without news."""
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
