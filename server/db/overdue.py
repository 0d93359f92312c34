"""Finds what operators should look at, with cheap queries that run every half minute."""

from dataclasses import dataclass
from datetime import datetime

from core.ids import EndpointId, MerchantId
from server.db.connection import Connection

ROWS_MAX = 50
COUNT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class DeadEndpoint:
    """An endpoint with recent dead letters, and their number."""

    merchant_id: MerchantId
    endpoint_id: EndpointId
    count: int
    latest_at: datetime


async def dead_deliveries(connection: Connection, *, since: datetime) -> list[DeadEndpoint]:
    """Endpoints whose deliveries became dead letters since then, the worst first."""
    rows = await connection.query(
        """
        SELECT merchant_id, endpoint_id, count(*), max(updated_at) FROM deliveries WHERE state = 'DEAD' AND updated_at >= $1
         GROUP BY merchant_id, endpoint_id ORDER BY count(*) DESC, merchant_id, endpoint_id LIMIT $2
        """,
        since,
        ROWS_MAX,
    )
    return [DeadEndpoint(MerchantId(row[0]), EndpointId(row[1]), row[2], row[3]) for row in rows]


async def dead_psp_events(connection: Connection, *, since: datetime) -> tuple[int, datetime | None]:
    """The number of PSP events that became dead letters since then, and the time of the latest."""
    rows = await connection.query(
        """
        SELECT count(*), max(updated_at)
          FROM (SELECT updated_at FROM psp_inbox WHERE state = 'DEAD' AND updated_at >= $1 ORDER BY updated_at DESC LIMIT $2) dead
        """,
        since,
        COUNT_MAX,
    )
    return rows[0][0], rows[0][1]


async def new_findings(connection: Connection, *, since: datetime) -> list[tuple[str, int, datetime]]:
    """Open findings not older than that, by kind, with the time of the latest."""
    rows = await connection.query(
        """
        SELECT kind, count(*), max(created_at) FROM findings WHERE created_at >= $1 AND resolved_at IS NULL
         GROUP BY kind ORDER BY kind LIMIT $2
        """,
        since,
        ROWS_MAX,
    )
    return [(kind, count, latest_at) for kind, count, latest_at in rows]


async def old_findings(connection: Connection, *, before: datetime) -> list[tuple[str, int, datetime]]:
    """Findings that are older than that and still open, by kind, with the time of the oldest."""
    rows = await connection.query(
        """
        SELECT kind, count(*), min(created_at) FROM findings WHERE created_at < $1 AND resolved_at IS NULL
         GROUP BY kind ORDER BY kind LIMIT $2
        """,
        before,
        ROWS_MAX,
    )
    return [(kind, count, oldest_at) for kind, count, oldest_at in rows]


async def overdue_payments(connection: Connection, *, due_before: datetime) -> int:
    """The number of payments that a job should have looked at before then and did not."""
    rows = await connection.query(
        "SELECT count(*) FROM (SELECT 1 FROM payment_requests WHERE due_at <= $1 LIMIT $2) overdue", due_before, COUNT_MAX
    )
    return int(rows[0][0])
