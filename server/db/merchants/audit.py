"""The audit log of operators' acts: append-only, written in the transaction of the act."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import MerchantId
from server.db.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One act of an operator. `actor` is the operator's name; `subject` is the public id of what the act was on, if it is not the
    merchant itself.
    """

    id: UUID
    merchant_id: MerchantId
    actor: str
    action: str
    detail: str
    at: datetime
    operator_id: UUID | None = None
    payment_id: UUID | None = None
    subject: str | None = None


async def record_act(connection: Connection, act: Act) -> None:
    """Write an act in the caller's transaction, once, however often it is repeated."""
    await connection.run(
        """
        INSERT INTO audit_log (merchant_id, id, actor, action, detail, created_at, operator_id, payment_id, subject)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (merchant_id, id) DO NOTHING
        """,
        act.merchant_id,
        act.id,
        act.actor,
        act.action,
        act.detail,
        act.at,
        act.operator_id,
        act.payment_id,
        act.subject,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A filter of acts; None matches everything. `merchant_id` may be `server.db.alerts.NOBODY`, for acts on none."""

    merchant_id: MerchantId | None = None
    payment_id: UUID | None = None
    subject: str | None = None
    actor: str | None = None
    since: datetime | None = None


async def list_acts(connection: Connection, wanted: Wanted, *, limit: int) -> list[Act]:
    """The latest acts, oldest first."""
    rows: Sequence[tuple[UUID, UUID, str, str, str, datetime, UUID | None, UUID | None, str | None]] = await connection.query(
        """
        SELECT id, merchant_id, actor, action, detail, created_at, operator_id, payment_id, subject FROM audit_log
         WHERE ($1::uuid IS NULL OR merchant_id = $1) AND ($2::uuid IS NULL OR payment_id = $2)
           AND ($3::text IS NULL OR subject = $3) AND ($4::text IS NULL OR actor = $4)
           AND ($5::timestamptz IS NULL OR created_at >= $5)
         ORDER BY created_at DESC, id DESC LIMIT $6
        """,
        wanted.merchant_id,
        wanted.payment_id,
        wanted.subject,
        wanted.actor,
        wanted.since,
        limit,
    )
    names = ("id", "merchant_id", "actor", "action", "detail", "at", "operator_id", "payment_id", "subject")
    return [Act(**dict(zip(names, row, strict=True))) for row in reversed(rows)]  # type: ignore[arg-type] # of the columns
