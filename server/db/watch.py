"""What somebody should look at, found by asking the tables: cheap questions, asked about once in half a minute."""

from dataclasses import dataclass
from datetime import datetime

from core.ids import EndpointId, MerchantId
from server.db.connection import Connection

ROWS_MAX = 50
COUNT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class DeadEndpoint:
    """An endpoint whose deliveries have died lately, and how many of them."""

    merchant_id: MerchantId
    endpoint_id: EndpointId
    count: int


async def dead_deliveries(connection: Connection, *, since: datetime) -> list[DeadEndpoint]:
    """Where deliveries have become dead letters since then, the worst first."""
    rows = await connection.query(
        """
        SELECT merchant_id, endpoint_id, count(*) FROM deliveries WHERE state = 'DEAD' AND updated_at >= $1
         GROUP BY merchant_id, endpoint_id ORDER BY count(*) DESC, merchant_id, endpoint_id LIMIT $2
        """,
        since,
        ROWS_MAX,
    )
    return [DeadEndpoint(MerchantId(merchant_id), EndpointId(endpoint_id), count) for merchant_id, endpoint_id, count in rows]


async def dead_psp_events(connection: Connection, *, since: datetime) -> int:
    """How many events of PSPs have become dead letters since then."""
    rows = await connection.query(
        "SELECT count(*) FROM (SELECT 1 FROM psp_inbox WHERE state = 'DEAD' AND updated_at >= $1 LIMIT $2) dead", since, COUNT_MAX
    )
    return int(rows[0][0])


async def new_findings(connection: Connection, *, since: datetime) -> list[tuple[str, int]]:
    """Findings of money that does not add up, and the like, by kind, that are open and not older than that."""
    rows = await connection.query(
        """
        SELECT kind, count(*) FROM findings WHERE created_at >= $1 AND resolved_at IS NULL
         GROUP BY kind ORDER BY kind LIMIT $2
        """,
        since,
        ROWS_MAX,
    )
    return [(kind, count) for kind, count in rows]


async def overdue_payments(connection: Connection, *, due_before: datetime) -> int:
    """How many payments should have been looked at before then and were not."""
    rows = await connection.query(
        "SELECT count(*) FROM (SELECT 1 FROM payment_requests WHERE due_at <= $1 LIMIT $2) overdue", due_before, COUNT_MAX
    )
    return int(rows[0][0])
