"""Transaction 1 of a payment, for a whole group: idempotency key, payment, its operation at the PSP and the first log row.

The key decides: a creation whose key exists writes nothing, and its caller gets what is stored under the key. The same goes for
one whose order has a live payment, if the merchant allows only one, or is paid, if it can be paid only once. A payment that pays
its order once keeps its place in the unique index of live orders, so nothing can come in between; one that has no place there,
because it was paid late or made before the merchant's terms changed, is found by its order. The operation is committed here,
before the first byte goes to the PSP, and its id is the PSP's idempotency key (promise:one-effect).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from core.idempotency import StoredKey
from core.ids import LogId, MerchantId, PaymentId
from core.payment import NO_TERMS, Capture, OperationKind, Payment, PaysOnce
from server.db import json_records
from server.db.connection import Connection
from server.db.payments.idempotency_keys import find_keys
from server.db.payments.refunds import UNSETTLED_OF


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """A payment to create, with the key of its request."""

    payment: Payment
    log_id: LogId
    key: str
    fingerprint: bytes
    in_flight_until: datetime


@dataclass(frozen=True, slots=True)
class OrderIsLive:
    """Another payment of the same order is live or has paid it, and the merchant allows only one."""


class CreationRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A creation as the statement reads it. Fields that few payments have are omitted from the others and get the column's
    default.
    """

    merchant_id: UUID
    payment_id: UUID
    psp_account_id: UUID
    operation_id: UUID
    log_id: UUID
    key: str
    fingerprint: bytes
    in_flight_until: datetime
    order_id: str
    amount_minor: int
    currency: str
    expires_at: datetime
    due_at: datetime | None
    created_at: datetime
    capture: Capture
    is_sync: bool
    operation: OperationKind
    return_url: str | None = None
    description: str | None = None
    live_order_id: str | None = None
    statement_descriptor: str | None = None
    metadata: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    fee_basis_points: int = 0
    fee_fixed_minor: int = 0
    refunds_fee: bool = False
    settlement_delay_seconds: int = 0
    refunds_late: bool = False
    pays_once: str | None = None


_HAS_MONEY = f"(p.refunded_minor < p.captured_minor OR EXISTS ({UNSETTLED_OF}))"
"""Payment `p`, which succeeded, is not refunded in full for certain."""

_WRITE = f"""
/* florin: payments are accepted */
WITH input AS (
    SELECT * FROM json_to_recordset($1::json) AS i ({json_records.columns(CreationRecord)})
), keys AS (
    INSERT INTO idempotency_keys (merchant_id, key, fingerprint, payment_id, in_flight_until, created_at, owner)
    SELECT merchant_id, key, decode(fingerprint, 'base64'), payment_id, in_flight_until, created_at, $2
      FROM input i
     WHERE i.live_order_id IS NULL OR NOT EXISTS (
            SELECT 1 FROM payment_requests p WHERE p.merchant_id = i.merchant_id AND p.live_order_id = i.live_order_id
             UNION ALL
            SELECT 1 FROM payment_requests p
             WHERE p.merchant_id = i.merchant_id AND p.order_id = i.order_id
               AND (p.status IN ('PENDING', 'UNKNOWN', 'AUTHORIZED') OR (p.status = 'SUCCEEDED' AND (
                    i.pays_once = 'always' OR (
                    i.pays_once = 'unless_refunded' AND {_HAS_MONEY})))))
     ORDER BY merchant_id, key
    ON CONFLICT (merchant_id, key) DO NOTHING
    RETURNING payment_id
), payments AS (
    INSERT INTO payment_requests (
        merchant_id, id, psp_account_id, operation_id, order_id, amount_minor, currency, status, version,
        return_url, description, idempotency_key, expires_at, due_at, created_at, updated_at, capture, is_sync,
        live_order_id, statement_descriptor, metadata, fee_basis_points, fee_fixed_minor, refunds_fee,
        settlement_delay_seconds, refunds_late, pays_once)
    SELECT merchant_id, payment_id, psp_account_id, operation_id, order_id, amount_minor, currency, 'PENDING', 1,
           return_url, description, key, expires_at, due_at, created_at, created_at, capture, is_sync,
           live_order_id, statement_descriptor, metadata, coalesce(fee_basis_points, 0), coalesce(fee_fixed_minor, 0),
           coalesce(refunds_fee, false), coalesce(settlement_delay_seconds, 0), coalesce(refunds_late, false), pays_once
      FROM input JOIN keys USING (payment_id)
), operations AS (
    INSERT INTO psp_operations (
        merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
    SELECT merchant_id, operation_id, payment_id, psp_account_id, operation, amount_minor, currency, 'SENT', created_at
      FROM input JOIN keys USING (payment_id)
), logs AS (
    INSERT INTO payment_logs (merchant_id, id, payment_id, version, source, kind, from_status, to_status, created_at)
    SELECT merchant_id, log_id, payment_id, 1, 'create', 'accepted', NULL, 'PENDING', created_at
      FROM input JOIN keys USING (payment_id)
)
SELECT payment_id FROM keys
"""  # noqa: S608 - own columns


class CreationGroup:
    """Writes a worker's creations. The result is None for a new key, else what its first request left, or `OrderIsLive`."""

    def __init__(self, *, worker_id: UUID) -> None:
        self._worker_id = worker_id

    def conflict_key(self, item: Creation) -> Hashable:
        """Two requests with one key never share a group: the second must read the first."""
        return (item.payment.merchant_id, item.key)

    async def write(self, connection: Connection, items: Sequence[Creation]) -> list[StoredKey | OrderIsLive | None]:
        """Write the group. Each row is new, or finds its key or its order taken."""
        rows = await connection.query(_WRITE, json_records.encode([_record(item) for item in items]), self._worker_id)
        if len(rows) == len(items):
            return [None] * len(items)
        created = {row[0] for row in rows}
        others = [(item.payment.merchant_id, item.key) for item in items if item.payment.id not in created]
        stored = await find_keys(connection, others)
        return [
            None if item.payment.id in created else stored.get((item.payment.merchant_id, item.key)) or OrderIsLive()
            for item in items
        ]

    async def recognize(self, connection: Connection, items: Sequence[Creation]) -> list[StoredKey | OrderIsLive | None]:
        """Find what earlier tries have written: the items' own keys, which `is_own` tells from those of other requests."""
        stored = await find_keys(connection, [(item.payment.merchant_id, item.key) for item in items])
        return [stored.get((item.payment.merchant_id, item.key)) for item in items]


async def find_payer(connection: Connection, merchant_id: MerchantId, order_id: str, *, pays_once: PaysOnce) -> PaymentId | None:
    """The latest payment that has paid an order, and because of which it cannot be paid again, or None."""
    rows = await connection.query(
        f"""
        SELECT p.id FROM payment_requests p
         WHERE p.merchant_id = $1 AND p.order_id = $2 AND p.status = 'SUCCEEDED'
           AND ($3 = 'always' OR {_HAS_MONEY})
         ORDER BY p.id DESC LIMIT 1
        """,  # noqa: S608 - our own fragment
        merchant_id,
        order_id,
        pays_once.value,
    )
    return PaymentId(rows[0][0]) if rows else None


def is_own(stored: StoredKey | OrderIsLive | None, item: Creation) -> bool:
    """Return whether the creation took place: its key is new, or was written by an earlier try of the same creation."""
    return stored is None or (isinstance(stored, StoredKey) and stored.resource_id == item.payment.id)


def _record(item: Creation) -> CreationRecord:
    payment, terms = item.payment, item.payment.terms
    record = {} if terms is NO_TERMS else {name: getattr(terms, name) for name in terms.__struct_fields__}
    return CreationRecord(
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
        psp_account_id=payment.psp_account_id,
        operation_id=payment.operation_id,
        log_id=item.log_id,
        key=item.key,
        fingerprint=item.fingerprint,
        in_flight_until=item.in_flight_until,
        order_id=payment.order_id,
        amount_minor=payment.money.amount_minor,
        currency=payment.money.currency,
        expires_at=payment.expires_at,
        due_at=payment.due_at,
        created_at=payment.created_at,
        capture=payment.capture,
        is_sync=payment.is_sync,
        operation=OperationKind.CHARGE if payment.is_sync else OperationKind.INTENT,
        return_url=payment.return_url,
        description=payment.description,
        live_order_id=payment.order_id if payment.is_exclusive else None,
        statement_descriptor=payment.statement_descriptor,
        metadata=payment.metadata or msgspec.UNSET,
        **record,
    )
