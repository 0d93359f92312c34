"""The requests that workers have admitted of merchants and keys near their rate, for the other workers."""

from collections.abc import Mapping
from uuid import UUID

import msgspec

from server.db import json_records
from server.db.connection import Connection

KEPT_SECONDS = 3.0


class UsageRecord(msgspec.Struct, frozen=True):
    """The requests of a merchant or key that this worker has admitted in the last second."""

    merchant_id: UUID
    requests_per_second: float


async def share_usage(connection: Connection, worker_id: UUID, used: Mapping[UUID, float]) -> dict[UUID, float]:
    """Tell the other workers what this one has admitted, by the id of a merchant or a key, and return what they have."""
    await connection.run(
        f"""
        INSERT INTO merchant_usage (merchant_id, worker_id, requests_per_second, seen_at)
        SELECT merchant_id, $1, requests_per_second, now()
          FROM json_to_recordset($2::json) AS i ({json_records.columns(UsageRecord)}) ORDER BY merchant_id
        ON CONFLICT (merchant_id, worker_id)
        DO UPDATE SET requests_per_second = excluded.requests_per_second, seen_at = excluded.seen_at
        """,  # noqa: S608 - own columns
        worker_id,
        json_records.encode([UsageRecord(*one) for one in used.items()]),
    )
    rows = await connection.query(
        """
        SELECT merchant_id, sum(requests_per_second) FROM merchant_usage
         WHERE worker_id <> $1 AND seen_at > now() - make_interval(secs => $2::float8) GROUP BY merchant_id
        """,
        worker_id,
        KEPT_SECONDS,
    )
    await connection.run("DELETE FROM merchant_usage WHERE seen_at < now() - interval '1 hour'")
    return dict(rows)
