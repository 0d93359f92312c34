"""Findings: what a person has to look at."""

from datetime import datetime
from uuid import UUID

from core.evidence import Finding
from core.ids import MerchantId, PaymentId
from core.ledger import Transfer
from core.payment import Payment
from server.db.connection import Connection


async def has_open_finding(connection: Connection, payment: Payment, kind: Finding) -> bool:
    """Return whether a finding of this kind is open already."""
    rows = await connection.query(
        """
        SELECT 1 FROM findings
         WHERE merchant_id = $1 AND payment_id = $2 AND kind = $3 AND resolved_at IS NULL LIMIT 1
        """,
        payment.merchant_id,
        payment.id,
        kind.value,
    )
    return bool(rows)


async def has_transfer(connection: Connection, merchant_id: MerchantId, transfer: Transfer) -> bool:
    """Return whether a transfer is in the ledger already."""
    rows = await connection.query(
        "SELECT 1 FROM ledger_entries WHERE merchant_id = $1 AND transfer_id = $2 AND kind = $3 LIMIT 1",
        merchant_id,
        transfer.id,
        transfer.kind.value,
    )
    return bool(rows)


async def add_finding(
    connection: Connection,
    merchant_id: MerchantId,
    payment_id: PaymentId,
    finding_id: UUID,
    *,
    kind: Finding,
    detail: str,
    now: datetime,
) -> None:
    """Write a finding that does not come with a change of a payment."""
    await connection.run(
        """
        INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at) VALUES ($1, $2, $3, $4, $5, $6)
        """,
        merchant_id,
        finding_id,
        kind.value,
        payment_id,
        detail,
        now,
    )
