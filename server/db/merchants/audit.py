"""The audit log of operators' acts: append-only, written in the transaction of the act."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import MerchantId
from server.db.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One act of an operator on a merchant. `actor` is the name the operator gave."""

    id: UUID
    merchant_id: MerchantId
    actor: str
    action: str
    detail: str
    at: datetime


async def record_act(connection: Connection, act: Act) -> None:
    """Write an act in the caller's transaction, once, however often it is repeated."""
    await connection.run(
        """
        INSERT INTO audit_log (merchant_id, id, actor, action, detail, created_at) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (merchant_id, id) DO NOTHING
        """,
        act.merchant_id,
        act.id,
        act.actor,
        act.action,
        act.detail,
        act.at,
    )
