"""Batches: accepting one with its idempotency key, the lease of the worker that runs it, its end and its resumption.

The lease is on the batch's row and uses the database's clock. Its token fences every write, so a worker that was paused and
continues after its lease has ended writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from core.batch import BatchId, BatchStatus
from core.ids import MerchantId
from server.db.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The state of a batch. `run` counts the first run and its resumptions; the times are those of the last run."""

    merchant_id: MerchantId
    id: BatchId
    status: BatchStatus
    count: int
    concurrency: int
    deadline_seconds: int
    deadline_at: datetime
    created_at: datetime
    started_at: datetime
    finished_at: datetime | None = None
    run: int = 1
    run_position: int = 0
    is_stopping: bool = False
    is_resumable: bool = False


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """A batch that this worker runs, with its items. `position` is that of the last result so far."""

    batch: Batch
    token: UUID
    sealed_items: bytes
    position: int


_BEGINNING = 4_021
"""The name of the advisory lock for starting batches."""

_NAMES = (
    *("merchant_id", "id", "status", "count", "concurrency", "deadline_seconds", "deadline_at", "created_at", "started_at"),
    *("finished_at", "run", "run_position", "is_stopping"),
)
_COLUMNS = ", ".join(_NAMES) + ", status <> 'RUNNING' AND sealed_items IS NOT NULL"


def _batch(row: Sequence[Any]) -> Batch:
    values: dict[str, Any] = dict(zip((*_NAMES, "is_resumable"), row, strict=True))
    return Batch(**{**values, "status": BatchStatus(values["status"])})


async def add_batch(connection: Connection, batch: Batch, *, sealed_items: bytes, key: str, fingerprint: bytes) -> bool:
    """Accept a batch together with its idempotency key. Returns False, and writes nothing, if the key is taken."""
    touched = await connection.run(
        """
        WITH accepted AS (
            INSERT INTO idempotency_keys (merchant_id, key, fingerprint, payment_id, in_flight_until, created_at, operation)
            VALUES ($1, $2, $3, $4, $5, $5, 'batch') ON CONFLICT (merchant_id, key) DO NOTHING
            RETURNING merchant_id
        )
        INSERT INTO batches (merchant_id, id, status, count, concurrency, deadline_seconds, deadline_at, sealed_items, created_at,
                             started_at)
        SELECT merchant_id, $4, 'RUNNING', $6, $7, $8, $9, $10, $5, $5 FROM accepted
        """,
        batch.merchant_id,
        key,
        fingerprint,
        batch.id,
        batch.created_at,
        batch.count,
        batch.concurrency,
        batch.deadline_seconds,
        batch.deadline_at,
        sealed_items,
    )
    return touched == 1


async def find_batch(connection: Connection, merchant_id: MerchantId, batch_id: BatchId) -> Batch | None:
    """Return one batch of a merchant."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM batches WHERE merchant_id = $1 AND id = $2",  # noqa: S608 - own columns
        merchant_id,
        batch_id,
    )
    return _batch(rows[0]) if rows else None


async def list_batches(
    connection: Connection, merchant_id: MerchantId, *, before: BatchId | None, limit: int
) -> tuple[list[Batch], BatchId | None]:
    """A page of a merchant's batches, newest first, and the start of the next page, or None at the end."""
    rows = await connection.query(
        f"""
        SELECT {_COLUMNS} FROM batches WHERE merchant_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3
        """,  # noqa: S608 - own columns
        merchant_id,
        before,
        limit + 1,
    )
    found = [_batch(row) for row in rows]
    return found[:limit], found[limit - 1].id if len(found) > limit else None


async def count_running(connection: Connection, merchant_id: MerchantId) -> int:
    """The number of running batches of a merchant. No other batch of it can start before this transaction ends."""
    await connection.run("SELECT pg_advisory_xact_lock($1, hashtext($2::text))", _BEGINNING, str(merchant_id))
    rows = await connection.query("SELECT count(*) FROM batches WHERE merchant_id = $1 AND status = 'RUNNING'", merchant_id)
    return int(rows[0][0])


async def claim_batch(
    connection: Connection, token: UUID, *, lease_seconds: float, only_due_before: datetime | None = None
) -> ClaimedBatch | None:
    """Claim the oldest waiting batch of a merchant with the fewest running batches, or None if no batch waits. With
    `only_due_before`, only a batch whose deadline is before that time.
    """
    rows = await connection.query(
        f"""
        UPDATE batches b SET lease_token = $1, lease_until = now() + make_interval(secs => $2::float8)
          FROM (SELECT merchant_id AS of_merchant, id AS of_id FROM batches
                 WHERE status = 'RUNNING' AND (lease_until IS NULL OR lease_until <= now())
                   AND ($3::timestamptz IS NULL OR deadline_at <= $3)
                 ORDER BY (SELECT count(*) FROM batches o
                            WHERE o.merchant_id = batches.merchant_id AND o.status = 'RUNNING' AND o.lease_until > now()),
                          started_at
                 LIMIT 1) waiting
         WHERE b.merchant_id = waiting.of_merchant AND b.id = waiting.of_id
           AND b.status = 'RUNNING' AND (b.lease_until IS NULL OR b.lease_until <= now())
        RETURNING b.sealed_items, {_COLUMNS}
        """,  # noqa: S608 - own columns
        token,
        lease_seconds,
        only_due_before,
    )
    if not rows:
        return None
    sealed_items, *columns = rows[0]
    batch = _batch(columns)
    highest = await connection.query(
        "SELECT coalesce(max(position), 0) FROM batch_items WHERE merchant_id = $1 AND batch_id = $2", batch.merchant_id, batch.id
    )
    return ClaimedBatch(batch, token, sealed_items, highest[0][0])


async def renew_lease(connection: Connection, claimed: ClaimedBatch, *, lease_seconds: float) -> bool | None:
    """Renew the lease. Returns whether the batch is to be stopped, or None if the lease is lost."""
    rows = await connection.query(
        """
        UPDATE batches SET lease_until = now() + make_interval(secs => $4::float8)
         WHERE merchant_id = $1 AND id = $2 AND lease_token = $3 AND status = 'RUNNING'
        RETURNING is_stopping
        """,
        claimed.batch.merchant_id,
        claimed.batch.id,
        claimed.token,
        lease_seconds,
    )
    return rows[0][0] if rows else None


async def release_batch(connection: Connection, claimed: ClaimedBatch) -> None:
    """Release the lease, so that another worker can continue at once."""
    await connection.run(
        "UPDATE batches SET lease_token = NULL, lease_until = NULL WHERE merchant_id = $1 AND id = $2 AND lease_token = $3",
        claimed.batch.merchant_id,
        claimed.batch.id,
        claimed.token,
    )


async def end_batch(
    connection: Connection, claimed: ClaimedBatch, status: BatchStatus, *, is_resumable: bool, now: datetime
) -> bool:
    """End this run of the batch. Returns False if the lease is lost. The items are deleted if they cannot be resumed."""
    touched = await connection.run(
        """
        UPDATE batches SET status = $4, finished_at = $5, lease_token = NULL, lease_until = NULL,
               sealed_items = CASE WHEN $6 THEN sealed_items END
         WHERE merchant_id = $1 AND id = $2 AND lease_token = $3 AND status = 'RUNNING'
        """,
        claimed.batch.merchant_id,
        claimed.batch.id,
        claimed.token,
        status.value,
        now,
        is_resumable,
    )
    return touched == 1


async def stop_batch(connection: Connection, merchant_id: MerchantId, batch_id: BatchId) -> None:
    """Ask the batch's worker to start no more items. An ended batch is not changed."""
    await connection.run(
        "UPDATE batches SET is_stopping = true WHERE merchant_id = $1 AND id = $2 AND status = 'RUNNING' AND NOT is_stopping",
        merchant_id,
        batch_id,
    )


async def find_items(connection: Connection, merchant_id: MerchantId, batch_id: BatchId) -> bytes | None:
    """The sealed items of a batch, or None if they have been deleted."""
    rows = await connection.query("SELECT sealed_items FROM batches WHERE merchant_id = $1 AND id = $2", merchant_id, batch_id)
    return rows[0][0] if rows else None


async def resume_batch(connection: Connection, resumed: Batch, *, created_after: datetime) -> bool:
    """Start the next run of a batch, once. Returns False if that run was started before, nothing is unfinished, or the batch is
    too old.
    """
    touched = await connection.run(
        """
        UPDATE batches
           SET status = 'RUNNING', finished_at = NULL, is_stopping = false, run = $3, concurrency = $4, deadline_seconds = $5,
               deadline_at = $6, started_at = $7,
               run_position = (SELECT coalesce(max(position), 0) FROM batch_items WHERE merchant_id = $1 AND batch_id = $2)
         WHERE merchant_id = $1 AND id = $2 AND run = $3 - 1 AND status <> 'RUNNING' AND sealed_items IS NOT NULL
           AND created_at > $8
        """,
        resumed.merchant_id,
        resumed.id,
        resumed.run,
        resumed.concurrency,
        resumed.deadline_seconds,
        resumed.deadline_at,
        resumed.started_at,
        created_after,
    )
    return touched == 1


async def forget_items(connection: Connection, *, created_before: datetime, limit: int) -> int:
    """Delete the items of up to that many batches that can no longer be resumed. Returns the number of batches."""
    return await connection.run(
        """
        UPDATE batches b SET sealed_items = NULL
          FROM (SELECT merchant_id, id FROM batches
                 WHERE sealed_items IS NOT NULL AND status <> 'RUNNING' AND created_at < $1 ORDER BY created_at LIMIT $2) old
         WHERE b.merchant_id = old.merchant_id AND b.id = old.id AND b.status <> 'RUNNING'
        """,
        created_before,
        limit,
    )
