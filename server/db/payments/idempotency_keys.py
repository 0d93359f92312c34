"""Idempotency keys: reading, claiming one for an operation, storing replies, pruning."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import trio

from core.idempotency import KeyedOperation, Reply, StoredKey
from core.ids import MerchantId, ResourceId
from server.db import json_records
from server.db.connection import Connection
from server.db.workers import ALIVE

KEPT = timedelta(days=30)
"""Keys are kept for this time."""


class KeyRecord(msgspec.Struct, frozen=True):
    """A key to look up."""

    merchant_id: UUID
    key: str


IN_FLIGHT_SECONDS_MAX = 120
"""The longest time for which a key is in flight. A later `in_flight_until` is a mistake of some clock."""

_IS_IN_FLIGHT = f"""
(k.reply_status IS NULL AND k.in_flight_until > now() AND k.in_flight_until < now() + interval '{IN_FLIGHT_SECONDS_MAX} s'
 AND (k.owner IS NULL OR EXISTS (SELECT FROM workers w WHERE w.id = k.owner AND w.{ALIVE})))
"""
_COLUMNS = f"""
k.merchant_id, k.key, k.operation, k.fingerprint, k.payment_id, k.refund_id, k.in_flight_until, {_IS_IN_FLIGHT}, k.reply_status,
coalesce(k.reply_body, (SELECT e.data FROM events e WHERE e.merchant_id = k.merchant_id AND e.seq = k.reply_seq))
"""  # noqa: S608 - own columns
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
    _, _, operation, fingerprint, resource_id, made_id, until, is_in_flight, status, body = row
    return StoredKey(
        operation=KeyedOperation(operation),
        fingerprint=fingerprint,
        resource_id=ResourceId(resource_id),
        in_flight_until=until,
        is_in_flight=is_in_flight,
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
    owner: UUID,
    now: datetime,
) -> StoredKey | None:
    """Claim a key for an operation on an existing or new object. Returns None if the key is new, else what is stored under it."""
    touched = await connection.run(
        """
        INSERT INTO idempotency_keys (
            merchant_id, key, fingerprint, payment_id, in_flight_until, created_at, operation, refund_id, owner)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
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
        owner,
    )
    return None if touched else await find_key(connection, merchant_id, key)


async def take_over_key(
    connection: Connection, merchant_id: MerchantId, key: str, stored: StoredKey, *, in_flight_until: datetime, owner: UUID
) -> bool:
    """Continue what a dead request had begun. Returns False if another request was faster."""
    touched = await connection.run(
        """
        UPDATE idempotency_keys SET in_flight_until = $4, owner = $5
         WHERE merchant_id = $1 AND key = $2 AND in_flight_until = $3 AND reply_status IS NULL
        """,
        merchant_id,
        key,
        stored.in_flight_until,
        in_flight_until,
        owner,
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


FLIGHTS_MAX = 10_000
_END = """
UPDATE idempotency_keys k SET in_flight_until = k.created_at
  FROM json_to_recordset($1::json) AS i ({})
 WHERE (k.merchant_id, k.key, k.in_flight_until) = (i.merchant_id, i.key, i.in_flight_until) AND k.reply_status IS NULL
"""


class Flight(msgspec.Struct, frozen=True):
    """A request that has failed: its key, and the `in_flight_until` that it wrote when it took the key."""

    merchant_id: UUID
    key: str
    in_flight_until: datetime


class Flights:
    """Requests of this worker that have failed and whose keys are still in flight in the table.

    The heartbeat ends them, so a request whose database has failed need not wait for it. At most `FLIGHTS_MAX` are kept: the keys
    of others are free once their time is over.
    """

    def __init__(self) -> None:
        self._failed: deque[Flight] = deque(maxlen=FLIGHTS_MAX)
        self._wakeup = trio.Event()

    def add(self, flight: Flight) -> None:
        """End the flight of a key soon."""
        self._failed.append(flight)
        self._wakeup.set()

    def take(self) -> list[Flight]:
        """Take all that have failed."""
        taken = list(self._failed)
        self._failed.clear()
        self._wakeup = trio.Event()
        return taken

    async def wait(self, *, seconds: float) -> None:
        """Wait until one has failed, or that many seconds have passed."""
        with trio.move_on_after(seconds):
            await self._wakeup.wait()


async def end_flights(connection: Connection, flights: Flights) -> None:
    """End the flights of the requests that have failed. What cannot be written is kept for another time."""
    taken = flights.take()
    if not taken:
        return
    try:
        await connection.run(_END.format(json_records.columns(Flight)), json_records.encode(taken))
    except BaseException:
        for flight in taken:
            flights.add(flight)
        raise


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
