"""Finds payments by any identifier that an operator may have: ours in any form, the merchant's order, or the PSP's reference.

Operators do not know the merchant, so each query asks merchant by merchant where there is an index, and otherwise reads a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import MerchantId, PaymentId
from core.money import Money
from server.db.connection import Connection

FOUND_MAX = 100

_OF_PAYMENT = "SELECT m.merchant_id, p.id FROM merchants m JOIN payment_requests p ON p.merchant_id = m.merchant_id AND p.id = $1"
_BY_UUID = (
    _OF_PAYMENT,
    "SELECT merchant_id, payment_id FROM refunds WHERE id = $1",
    "SELECT merchant_id, payment_id FROM psp_operations WHERE id = $1",
    "SELECT merchant_id, payment_id FROM events WHERE id = $1 AND payment_id IS NOT NULL",
)
_BY_TEXT = (
    "SELECT m.merchant_id, p.id FROM merchants m JOIN payment_requests p ON p.merchant_id = m.merchant_id AND p.order_id = $1",
    """
    SELECT merchant_id, id FROM payment_requests WHERE reference = $1
     UNION SELECT merchant_id, payment_id FROM refunds WHERE reference = $1
     UNION SELECT merchant_id, payment_id FROM psp_events WHERE event_id = $1
    """,
    "SELECT merchant_id, payment_id FROM idempotency_keys WHERE key = $1 AND operation <> 'endpoint'",
)


@dataclass(frozen=True, slots=True)
class Found:
    """A payment that was found, with what tells it from others."""

    merchant_id: MerchantId
    id: PaymentId
    order_id: str
    money: Money
    status: str
    created_at: datetime


async def find_by_uuid(connection: Connection, value: UUID) -> list[Found]:
    """The payment that is, or has, something of that id: a refund, an operation at the PSP, an event, or the request for one."""
    return await _first(connection, _BY_UUID, value)


async def find_by_text(connection: Connection, text: str) -> list[Found]:
    """The payments of an order, else those with a reference or an event of the PSP's, else those of an idempotency key."""
    return await _first(connection, _BY_TEXT, text)


async def _first(connection: Connection, queries: Sequence[str], value: object) -> list[Found]:
    """The result of the first query that finds anything, newest first."""
    for query in queries:
        rows = await connection.query(
            f"""
            SELECT p.merchant_id, p.id, p.order_id, p.amount_minor, p.currency, p.status, p.created_at
              FROM ({query}) AS found (merchant_id, id) JOIN payment_requests p USING (merchant_id, id)
             ORDER BY p.id DESC LIMIT {FOUND_MAX}
            """,  # noqa: S608 - own queries
            value,
        )
        if rows:
            return [
                Found(merchant_id, payment_id, order_id, Money(amount_minor, currency), status, created_at)
                for merchant_id, payment_id, order_id, amount_minor, currency, status, created_at in rows
            ]
    return []
