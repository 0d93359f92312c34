"""Idempotency keys: reading them, claiming one for an operation, storing replies, pruning."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from core.idempotency import StoredKey
from core.ids import MerchantId, PaymentId, RefundId
from server.db.array_literals import quoted, uuids
from server.db.connection import Connection

KEPT = timedelta(days=30)
"""How long a key is remembered."""


async def find_keys(connection: Connection, keys: Sequence[tuple[MerchantId, str]]) -> dict[tuple[MerchantId, str], StoredKey]:
    """What is stored under these keys."""
    rows = await connection.query(
        """
        SELECT k.merchant_id, k.key, k.fingerprint, k.payment_id, k.refund_id, k.in_flight_until, k.reply_status,
               coalesce(k.reply_body, (SELECT e.data FROM events e WHERE e.merchant_id = k.merchant_id AND e.seq = k.reply_seq))
          FROM idempotency_keys k
          JOIN unnest($1::uuid[], $2::text[]) AS i (merchant_id, key) ON (k.merchant_id, k.key) = (i.merchant_id, i.key)
        """,
        uuids(merchant_id for merchant_id, _ in keys),
        quoted(key for _, key in keys),
    )
    return {
        (MerchantId(merchant_id), key): StoredKey(
            fingerprint,
            PaymentId(payment_id),
            until,
            status,
            body.encode() if body is not None else None,
            RefundId(refund_id) if refund_id else None,
        )
        for merchant_id, key, fingerprint, payment_id, refund_id, until, status, body in rows
    }


async def find_key(connection: Connection, merchant_id: MerchantId, key: str) -> StoredKey | None:
    """What is stored under one key."""
    return (await find_keys(connection, [(merchant_id, key)])).get((merchant_id, key))


async def known_keys(connection: Connection, merchant_id: MerchantId, keys: Sequence[str]) -> dict[str, str]:
    """Which of these keys were used, and for which operation."""
    rows = await connection.query(
        "SELECT key, operation FROM idempotency_keys WHERE merchant_id = $1 AND key = ANY ($2::text[])", merchant_id, quoted(keys)
    )
    return dict(rows)


async def claim_key(
    connection: Connection,
    merchant_id: MerchantId,
    payment_id: PaymentId,
    *,
    key: str,
    fingerprint: bytes,
    operation: str,
    refund_id: RefundId | None,
    in_flight_until: datetime,
    now: datetime,
) -> StoredKey | None:
    """Take a key for an operation (capture, cancel or refund) on a payment; None where it is new, else what is stored."""
    touched = await connection.run(
        """
        INSERT INTO idempotency_keys (
            merchant_id, key, fingerprint, payment_id, in_flight_until, created_at, operation, refund_id)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (merchant_id, key) DO NOTHING
        """,
        merchant_id,
        key,
        fingerprint,
        payment_id,
        in_flight_until,
        now,
        operation,
        refund_id,
    )
    return None if touched else await find_key(connection, merchant_id, key)


async def take_over_key(
    connection: Connection, merchant_id: MerchantId, key: str, stored: StoredKey, *, in_flight_until: datetime
) -> bool:
    """Go on with what a request that died had begun; False where another request was faster."""
    touched = await connection.run(
        """
        UPDATE idempotency_keys SET in_flight_until = $4
         WHERE merchant_id = $1 AND key = $2 AND in_flight_until = $3 AND reply_status IS NULL
        """,
        merchant_id,
        key,
        stored.in_flight_until,
        in_flight_until,
    )
    return touched == 1


async def store_reply(connection: Connection, merchant_id: MerchantId, key: str, *, status: int, body: bytes) -> None:
    """Store the first definitive reply of a key; one that is there stays."""
    await connection.run(
        """
        UPDATE idempotency_keys SET reply_status = $3, reply_body = $4, in_flight_until = created_at
         WHERE merchant_id = $1 AND key = $2 AND reply_status IS NULL
        """,
        merchant_id,
        key,
        status,
        body.decode(),
    )


async def end_flight(connection: Connection, merchant_id: MerchantId, key: str, *, in_flight_until: datetime) -> None:
    """The request with this key has ended without a definitive reply: a retry need not wait.

    `in_flight_until` is what the request wrote when it took the key: one that was taken over meanwhile ends nothing.
    """
    await connection.run(
        """
        UPDATE idempotency_keys SET in_flight_until = created_at
         WHERE merchant_id = $1 AND key = $2 AND in_flight_until = $3 AND reply_status IS NULL
        """,
        merchant_id,
        key,
        in_flight_until,
    )


async def forget_key(connection: Connection, merchant_id: MerchantId, key: str) -> None:
    """The request with this key was refused before it had any effect; only for operations that say so."""
    await connection.run(
        """
        DELETE FROM idempotency_keys
         WHERE merchant_id = $1 AND key = $2 AND reply_status IS NULL AND operation = 'endpoint'
        """,
        merchant_id,
        key,
    )


async def prune_keys(connection: Connection, *, now: datetime, limit: int) -> int:
    """Forget keys older than `KEPT`, at most so many; how many were forgotten."""
    return await connection.run(
        """
        DELETE FROM idempotency_keys k
         USING (SELECT merchant_id, key FROM idempotency_keys WHERE created_at < $1 ORDER BY created_at LIMIT $2) old
         WHERE k.merchant_id = old.merchant_id AND k.key = old.key
        """,
        now - KEPT,
        limit,
    )
