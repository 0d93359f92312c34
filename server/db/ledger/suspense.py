"""Money in suspense: what a PSP has told of and matches no payment, each by the payment that the PSP named."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import MerchantId, PaymentId
from core.money import Money
from server.db.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """A transfer to suspense that no operator has moved on. `receivable` is the account of the PSP that holds the money."""

    merchant_id: MerchantId
    payment_id: PaymentId
    transfer_id: UUID
    money: Money
    receivable: str
    created_at: datetime


_SELECT = """
SELECT s.merchant_id, s.payment_id, s.transfer_id, s.amount_minor, s.currency,
       coalesce(r.account, 'psp_receivable:' || replace(p.psp_account_id::text, '-', '')), s.created_at
  FROM ledger_entries s
  JOIN payment_requests p ON p.merchant_id = s.merchant_id AND p.id = s.payment_id
  LEFT JOIN ledger_entries r ON r.merchant_id = s.merchant_id AND r.transfer_id = s.transfer_id AND r.kind = s.kind
                            AND r.account LIKE 'psp_receivable:%'
 WHERE s.kind IN ('suspense', 'suspense_again', 'operator_charge_reversal') AND s.account = 'suspense' AND p.suspended
   AND NOT EXISTS (
        SELECT FROM operator_requests o
         WHERE o.merchant_id = s.merchant_id AND o.payment_id = s.payment_id AND o.kind = 'suspense' AND o.state = 'DONE'
           AND o.document::json ->> 'transfer_id' = s.transfer_id::text)
"""


async def list_suspended(connection: Connection, *, payment_id: UUID | None, limit: int) -> list[Suspended]:
    """The money in suspense, oldest first: of one payment, or all."""
    rows = await connection.query(
        f"{_SELECT} AND ($1::uuid IS NULL OR s.payment_id = $1) ORDER BY s.created_at, s.transfer_id LIMIT $2", payment_id, limit
    )
    return [
        Suspended(
            merchant_id=MerchantId(row[0]),
            payment_id=PaymentId(row[1]),
            transfer_id=row[2],
            money=Money(row[3], row[4]),
            receivable=row[5],
            created_at=row[6],
        )
        for row in rows
    ]
