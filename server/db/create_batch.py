"""Transaction 1 of a payment, for a whole batch: idempotency key, payment, its operation at the PSP and the first log row.

The key decides: a row whose key exists already writes nothing, and its caller is given what is stored under the key. The
operation is committed here, before the first byte leaves for the PSP, and its id is the PSP's idempotency key.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime

from core.idempotency import StoredKey
from core.ids import LogId, PaymentId
from core.payment import Payment
from server.db.arrays import hexed, plain, quoted
from server.db.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """A payment to be accepted, with the key of the request that asks for it."""

    payment: Payment
    log_id: LogId
    key: str
    fingerprint: bytes
    in_flight_until: datetime


_WRITE = """
WITH input AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::bytea[], $8::timestamptz[],
        $9::text[], $10::bigint[], $11::text[], $12::text[], $13::text[], $14::timestamptz[], $15::timestamptz[],
        $16::timestamptz[]
    ) AS i (merchant_id, payment_id, psp_account_id, operation_id, log_id, key, fingerprint, in_flight_until,
            order_id, amount_minor, currency, return_url, description, expires_at, due_at, created_at)
), keys AS (
    INSERT INTO idempotency_keys (merchant_id, key, fingerprint, payment_id, in_flight_until, created_at)
    SELECT merchant_id, key, fingerprint, payment_id, in_flight_until, created_at FROM input ORDER BY merchant_id, key
    ON CONFLICT (merchant_id, key) DO NOTHING
    RETURNING payment_id
), payments AS (
    INSERT INTO payment_requests (
        merchant_id, id, psp_account_id, operation_id, order_id, amount_minor, currency, status, version,
        return_url, description, idempotency_key, expires_at, due_at, created_at, updated_at)
    SELECT merchant_id, payment_id, psp_account_id, operation_id, order_id, amount_minor, currency, 'PENDING', 1,
           return_url, description, key, expires_at, due_at, created_at, created_at
      FROM input JOIN keys USING (payment_id)
), operations AS (
    INSERT INTO psp_operations (
        merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
    SELECT merchant_id, operation_id, payment_id, psp_account_id, 'intent', amount_minor, currency, 'SENT', created_at
      FROM input JOIN keys USING (payment_id)
), logs AS (
    INSERT INTO payment_logs (merchant_id, id, payment_id, version, source, kind, from_status, to_status, created_at)
    SELECT merchant_id, log_id, payment_id, 1, 'create', 'accepted', NULL, 'PENDING', created_at
      FROM input JOIN keys USING (payment_id)
)
SELECT payment_id FROM keys
"""

_STORED = """
SELECT k.merchant_id, k.key, k.fingerprint, k.payment_id, k.in_flight_until, k.reply_status, k.reply_body
  FROM idempotency_keys k
  JOIN unnest($1::uuid[], $2::text[]) AS i (merchant_id, key) ON (k.merchant_id, k.key) = (i.merchant_id, i.key)
"""


class CreateBatch:
    """Writes creations; the result is None for a new key, else what the key's first request left behind."""

    def conflict_key(self, item: Creation) -> Hashable:
        """Two requests with one key never share a batch: the second must read the first."""
        return (item.payment.merchant_id, item.key)

    async def write(self, connection: Connection, items: Sequence[Creation]) -> list[StoredKey | None]:
        """Write the batch; each row is new or finds its key taken."""
        payments = [item.payment for item in items]
        rows = await connection.query(
            _WRITE,
            plain(payment.merchant_id for payment in payments),
            plain(payment.id for payment in payments),
            plain(payment.psp_account_id for payment in payments),
            plain(payment.operation_id for payment in payments),
            plain(item.log_id for item in items),
            quoted(item.key for item in items),
            hexed(item.fingerprint for item in items),
            quoted(item.in_flight_until for item in items),
            quoted(payment.order_id for payment in payments),
            plain(payment.money.amount_minor for payment in payments),
            plain(payment.money.currency for payment in payments),
            quoted(payment.return_url for payment in payments),
            quoted(payment.description for payment in payments),
            quoted(payment.expires_at for payment in payments),
            quoted(payment.due_at for payment in payments),
            quoted(payment.created_at for payment in payments),
        )
        created = {row[0] for row in rows}
        if len(created) == len(items):
            return [None] * len(items)
        stored = await self._stored(connection, [item for item in items if item.payment.id not in created])
        return [None if item.payment.id in created else stored[item.payment.merchant_id, item.key] for item in items]

    async def recognize(self, connection: Connection, items: Sequence[Creation]) -> list[StoredKey | None]:
        """Nothing to recognize apart: `write` repeated finds its own keys, and `is_own` tells them from another's."""
        del connection
        return [None] * len(items)

    async def _stored(self, connection: Connection, items: Sequence[Creation]) -> dict[tuple[object, str], StoredKey]:
        rows = await connection.query(
            _STORED, plain(item.payment.merchant_id for item in items), quoted(item.key for item in items)
        )
        return {
            (merchant_id, key): StoredKey(
                fingerprint, PaymentId(payment_id), until, status, body.encode() if body is not None else None
            )
            for merchant_id, key, fingerprint, payment_id, until, status, body in rows
        }


def is_own(stored: StoredKey | None, item: Creation) -> bool:
    """Whether the creation took place: its key is new, or was written by an earlier try of this very creation."""
    return stored is None or stored.payment_id == item.payment.id
