"""Transaction 1 of a payment, for a whole batch: idempotency key, payment, its operation at the PSP and the first log row.

The key decides: a row whose key exists already writes nothing, and its caller is given what is stored under the key; so does one
whose order has a live payment, where the merchant wants one at a time. The operation is committed here, before the first byte
leaves for the PSP, and its id is the PSP's idempotency key.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import msgspec

from core.idempotency import StoredKey
from core.ids import LogId
from core.payment import NO_TERMS, OperationKind, Payment
from server.db.array_literals import hexed, plain, quoted, times, uuids
from server.db.connection import Connection
from server.db.payments.idempotency_keys import find_keys


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """A payment to be accepted, with the key of the request that asks for it."""

    payment: Payment
    log_id: LogId
    key: str
    fingerprint: bytes
    in_flight_until: datetime


@dataclass(frozen=True, slots=True)
class OrderIsLive:
    """Another payment of the same order is live, and the merchant wants one at a time."""


_WRITE = """
/* florin: payments are accepted */
WITH input AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::bytea[], $8::timestamptz[],
        $9::text[], $10::bigint[], $11::text[], $12::text[], $13::text[], $14::timestamptz[], $15::timestamptz[],
        $16::timestamptz[], $17::text[], $18::boolean[], $19::text[]
    ) AS i (merchant_id, payment_id, psp_account_id, operation_id, log_id, key, fingerprint, in_flight_until,
            order_id, amount_minor, currency, return_url, description, expires_at, due_at,
            created_at, capture, is_sync, operation)
), special AS (
    SELECT * FROM unnest(
        $20::uuid[], $21::text[], $22::text[], $23::text[], $24::integer[], $25::bigint[], $26::boolean[], $27::integer[],
        $28::boolean[]
    ) AS s (payment_id, live_order_id, statement_descriptor, metadata, fee_basis_points, fee_fixed_minor, refunds_fee,
            settlement_delay_seconds, refunds_late)
), keys AS (
    INSERT INTO idempotency_keys (merchant_id, key, fingerprint, payment_id, in_flight_until, created_at)
    SELECT merchant_id, key, fingerprint, payment_id, in_flight_until, created_at FROM input i
     WHERE NOT EXISTS (
            SELECT FROM special s JOIN payment_requests p
                ON p.merchant_id = i.merchant_id AND p.live_order_id = s.live_order_id
             WHERE s.payment_id = i.payment_id AND s.live_order_id IS NOT NULL)
     ORDER BY merchant_id, key
    ON CONFLICT (merchant_id, key) DO NOTHING
    RETURNING payment_id
), payments AS (
    INSERT INTO payment_requests (
        merchant_id, id, psp_account_id, operation_id, order_id, amount_minor, currency, status, version,
        return_url, description, idempotency_key, expires_at, due_at, created_at, updated_at, capture, is_sync,
        live_order_id, statement_descriptor, metadata, fee_basis_points, fee_fixed_minor, refunds_fee,
        settlement_delay_seconds, refunds_late)
    SELECT i.merchant_id, payment_id, i.psp_account_id, i.operation_id, i.order_id, i.amount_minor, i.currency, 'PENDING', 1,
           i.return_url, i.description, i.key, i.expires_at, i.due_at, i.created_at, i.created_at, i.capture, i.is_sync,
           s.live_order_id, s.statement_descriptor, s.metadata, coalesce(s.fee_basis_points, 0), coalesce(s.fee_fixed_minor, 0),
           coalesce(s.refunds_fee, false), coalesce(s.settlement_delay_seconds, 0), coalesce(s.refunds_late, false)
      FROM input i JOIN keys USING (payment_id) LEFT JOIN special s USING (payment_id)
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
"""


class CreateBatch:
    """Writes creations; the result is None for a new key, else what the key's first request left behind, or `OrderIsLive`."""

    def conflict_key(self, item: Creation) -> Hashable:
        """Two requests with one key never share a batch: the second must read the first."""
        return (item.payment.merchant_id, item.key)

    async def write(self, connection: Connection, items: Sequence[Creation]) -> list[StoredKey | OrderIsLive | None]:
        """Write the batch; each row is new or finds its key or its order taken."""
        rows = await connection.query(_WRITE, *chain(_common(items), _special(items)))
        created = {row[0] for row in rows}
        if len(created) == len(items):
            return [None] * len(items)
        others = [(item.payment.merchant_id, item.key) for item in items if item.payment.id not in created]
        stored = await find_keys(connection, others)
        return [
            None if item.payment.id in created else stored.get((item.payment.merchant_id, item.key)) or OrderIsLive()
            for item in items
        ]

    async def recognize(self, connection: Connection, items: Sequence[Creation]) -> list[StoredKey | OrderIsLive | None]:
        """What earlier tries have written: the items' own keys, which `is_own` tells from another's."""
        stored = await find_keys(connection, [(item.payment.merchant_id, item.key) for item in items])
        return [stored.get((item.payment.merchant_id, item.key)) for item in items]


def is_own(stored: StoredKey | OrderIsLive | None, item: Creation) -> bool:
    """Whether the creation took place: its key is new, or was written by an earlier try of this very creation."""
    return stored is None or (isinstance(stored, StoredKey) and stored.payment_id == item.payment.id)


def _common(items: Sequence[Creation]) -> Iterator[str]:
    payments = [item.payment for item in items]
    yield uuids([payment.merchant_id for payment in payments])
    yield uuids([payment.id for payment in payments])
    yield uuids([payment.psp_account_id for payment in payments])
    yield uuids([payment.operation_id for payment in payments])
    yield uuids([item.log_id for item in items])
    yield quoted([item.key for item in items])
    yield hexed([item.fingerprint for item in items])
    yield times([item.in_flight_until for item in items])
    yield quoted([payment.order_id for payment in payments])
    yield plain([payment.money.amount_minor for payment in payments])
    yield plain([payment.money.currency for payment in payments])
    yield quoted([payment.return_url for payment in payments])
    yield quoted([payment.description for payment in payments])
    yield times([payment.expires_at for payment in payments])
    yield times([payment.due_at for payment in payments])
    yield times([payment.created_at for payment in payments])
    yield plain([payment.capture for payment in payments])
    yield plain([payment.is_sync for payment in payments])
    yield plain([OperationKind.CHARGE if payment.is_sync else OperationKind.INTENT for payment in payments])


def _special(items: Sequence[Creation]) -> Iterator[str]:
    """What few payments have; empty where none of the batch does."""
    payments = [item.payment for item in items if _is_special(item.payment)]
    terms = [payment.terms for payment in payments]
    yield uuids([payment.id for payment in payments])
    yield quoted([payment.order_id if payment.is_exclusive else None for payment in payments])
    yield quoted([payment.statement_descriptor for payment in payments])
    yield quoted([msgspec.json.encode(payment.metadata).decode() if payment.metadata else None for payment in payments])
    yield plain([term.fee_basis_points for term in terms])
    yield plain([term.fee_fixed_minor for term in terms])
    yield plain([term.refunds_fee for term in terms])
    yield plain([term.settlement_delay_seconds for term in terms])
    yield plain([term.refunds_late for term in terms])


def _is_special(payment: Payment) -> bool:
    return bool(
        payment.terms is not NO_TERMS or payment.is_exclusive or payment.metadata or payment.statement_descriptor is not None
    )
