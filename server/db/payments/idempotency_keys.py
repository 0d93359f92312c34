"""Idempotency keys: reading, claiming one for an operation, storing replies, pruning."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from core.idempotency import KeyedOperation, Reply, StoredKey
from core.ids import MerchantId, ResourceId
from server.db import json_records
from server.db.connection import Connection

KEPT = timedelta(days=30)
"""Keys are kept for this time."""


class KeyRecord(msgspec.Struct, frozen=True):
    """A key to look up."""

    merchant_id: UUID
    key: str


_COLUMNS = """
k.merchant_id, k.key, k.operation, k.fingerprint, k.payment_id, k.refund_id, k.in_flight_until, k.reply_status,
coalesce(k.reply_body, (SELECT e.data FROM events e WHERE e.merchant_id = k.merchant_id AND e.seq = k.reply_seq))
"""
_FIND = f"SELECT {_COLUMNS} FROM idempotency_keys k WHERE k.merchant_id = $1 AND k.key = $2"  # noqa: S608 - own columns
_FIND_MANY = f"""
SELECT {_COLUMNS}
  FROM idempotency_keys k
  JOIN json_to_recordset($1::json) AS i ({json_records.columns(KeyRecord)})
    ON (k.merchant_id, k.key) = (i.merchant_id, i.key)
"""  # noqa: S608 - own columns


async def find_keys(connection: Connection, keys: Sequence[tuple[MerchantId, str]]) -> dict[tuple[MerchantId, str], StoredKey]:
    """Return the stored keys among these."""
    rows = await connection.query(_FIND_MANY, json_records.encode([KeyRecord(*one) for one in keys]))
    return {(row[0], row[1]): _stored(row) for row in rows}


async def find_key(connection: Connection, merchant_id: MerchantId, key: str) -> StoredKey | None:
    """Return what is stored under one key."""
    rows = await connection.query(_FIND, merchant_id, key)
    return _stored(rows[0]) if rows else None


def _stored(row: Sequence[Any]) -> StoredKey:
    _, _, operation, fingerprint, resource_id, made_id, until, status, body = row
    return StoredKey(
        operation=KeyedOperation(operation),
        fingerprint=fingerprint,
        resource_id=ResourceId(resource_id),
        in_flight_until=until,
        reply=Reply(status, body.encode()) if status is not None and body is not None else None,
        made_id=ResourceId(made_id) if made_id is not None else None,
    )


async def known_keys(connection: Connection, merchant_id: MerchantId, keys: Sequence[str]) -> dict[str, KeyedOperation]:
    """Return which of these keys were used, and for which operation."""
    rows = await connection.query(
        "SELECT key, operation FROM idempotency_keys WHERE merchant_id = $1 AND key = ANY ($2::text[])", merchant_id, list(keys)
    )
    return {key: KeyedOperation(operation) for key, operation in rows}


async def claim_key(
    connection: Connection,
    merchant_id: MerchantId,
    *,
    key: str,
    fingerprint: bytes,
    operation: KeyedOperation,
    resource_id: ResourceId,
    made_id: ResourceId | None,
    in_flight_until: datetime,
    now: datetime,
) -> StoredKey | None:
    """Claim a key for an operation on an existing or new object. Returns None if the key is new, else what is stored under it."""
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
        resource_id,
        in_flight_until,
        now,
        operation.value,
        made_id,
    )
    return None if touched else await find_key(connection, merchant_id, key)


async def take_over_key(
    connection: Connection, merchant_id: MerchantId, key: str, stored: StoredKey, *, in_flight_until: datetime
) -> bool:
    """Continue what a dead request had begun. Returns False if another request was faster."""
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


async def store_reply(connection: Connection, merchant_id: MerchantId, key: str, reply: Reply) -> None:
    """Store the first definitive reply of a key. An existing one is kept."""
    await connection.run(
        """
        UPDATE idempotency_keys SET reply_status = $3, reply_body = $4, in_flight_until = created_at
         WHERE merchant_id = $1 AND key = $2 AND reply_status IS NULL
        """,
        merchant_id,
        key,
        reply.status,
        reply.body.decode(),
    )


async def release_key(connection: Connection, merchant_id: MerchantId, key: str, *, in_flight_until: datetime) -> None:
    """Record that the request with this key has ended without a definitive reply, so a retry need not wait.

    `in_flight_until` is the value that the request wrote when it took the key; if the key was taken over meanwhile, nothing
    changes.
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
    """Delete the key of a request that was refused before any effect; only for operations that allow it."""
    await connection.run(
        """
        DELETE FROM idempotency_keys
         WHERE merchant_id = $1 AND key = $2 AND reply_status IS NULL AND operation = 'endpoint'
        """,
        merchant_id,
        key,
    )


async def prune_keys(connection: Connection, *, now: datetime, limit: int) -> int:
    """Delete up to that many keys older than `KEPT`. Returns the number deleted."""
    return await connection.run(
        """
        DELETE FROM idempotency_keys k
         USING (SELECT merchant_id, key FROM idempotency_keys WHERE created_at < $1 ORDER BY created_at LIMIT $2) old
         WHERE k.merchant_id = old.merchant_id AND k.key = old.key
        """,
        now - KEPT,
        limit,
    )
