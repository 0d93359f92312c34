"""Dead letters: deliveries that have used all attempts, or whose endpoint is disabled. They stay until they are retried or
dropped.
"""

from dataclasses import dataclass
from datetime import datetime

from core.ids import EndpointId, EventId, MerchantId
from server.db.connection import Connection
from server.db.webhooks.delivery_log import REPLAY_PER_SECOND

LETTERS_AT_ONCE_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that was given up."""

    merchant_id: MerchantId
    endpoint_id: EndpointId
    seq: int
    event_id: EventId
    event_type: str
    attempts: int
    last_status: int | None
    last_error: str | None
    died_at: datetime


@dataclass(frozen=True, slots=True)
class Letters:
    """A selection of dead letters: a merchant's, one endpoint's, or one event's; None selects all."""

    merchant_id: MerchantId | None = None
    endpoint_id: EndpointId | None = None
    seq: int | None = None


_COLUMN_BY_FIELD = {
    "merchant_id": "d.merchant_id",
    "endpoint_id": "d.endpoint_id",
    "seq": "d.event_seq",
    "event_id": "e.id",
    "event_type": "e.type",
    "attempts": "d.attempts",
    "last_status": "d.last_status",
    "last_error": "d.last_error",
    "died_at": "d.updated_at",
}
_DEAD = """
 WHERE d.state = 'DEAD' AND ($1::uuid IS NULL OR d.merchant_id = $1) AND ($2::uuid IS NULL OR d.endpoint_id = $2)
   AND ($3::bigint IS NULL OR d.event_seq = $3)
"""


async def list_dead_letters(
    connection: Connection, letters: Letters, *, after: tuple[EndpointId, int] | None = None, limit: int
) -> list[DeadLetter]:
    """Dead letters after `after`, by merchant, endpoint and number."""
    rows = await connection.query(
        f"""
        SELECT {", ".join(_COLUMN_BY_FIELD.values())}
          FROM deliveries d JOIN events e ON e.merchant_id = d.merchant_id AND e.seq = d.event_seq
        {_DEAD} AND ($4::uuid IS NULL OR (d.endpoint_id, d.event_seq) > ($4, $5::bigint))
         ORDER BY d.merchant_id, d.endpoint_id, d.event_seq LIMIT $6
        """,  # noqa: S608 - own conditions
        letters.merchant_id,
        letters.endpoint_id,
        letters.seq,
        *(after or (None, None)),
        limit,
    )
    return [DeadLetter(**dict(zip(_COLUMN_BY_FIELD, row, strict=True))) for row in rows]


async def retry_dead_letters(connection: Connection, letters: Letters, *, per_second: float = REPLAY_PER_SECOND) -> int:
    """Restart their attempts, spread out in time, and return how many, at most 10,000. Those of a disabled endpoint stay dead."""
    return await connection.run(
        f"""
        UPDATE deliveries d
           SET state = 'PENDING', attempts = 0, updated_at = now(),
               due_at = CASE WHEN d.is_ordered THEN NULL ELSE now() + make_interval(secs => (n.number - 1) / $4::float8) END
          FROM (SELECT d.merchant_id, d.endpoint_id, d.event_seq,
                       row_number() OVER (PARTITION BY d.endpoint_id ORDER BY d.event_seq) AS number
                  FROM (SELECT d.merchant_id, d.endpoint_id, d.event_seq FROM deliveries d
                          JOIN webhook_endpoints w ON w.merchant_id = d.merchant_id AND w.id = d.endpoint_id AND w.enabled
                        {_DEAD} ORDER BY d.merchant_id, d.endpoint_id, d.event_seq LIMIT $5 FOR UPDATE OF d) d) n
         WHERE d.merchant_id = n.merchant_id AND d.endpoint_id = n.endpoint_id AND d.event_seq = n.event_seq
           AND d.state = 'DEAD'
        """,  # noqa: S608 - own conditions
        letters.merchant_id,
        letters.endpoint_id,
        letters.seq,
        per_second,
        LETTERS_AT_ONCE_MAX,
    )


async def drop_dead_letters(connection: Connection, letters: Letters) -> int:
    """Drop them and return how many, at most 10,000. They stay in the log."""
    return await connection.run(
        f"""
        UPDATE deliveries d SET state = 'DROPPED', updated_at = now()
          FROM (SELECT d.merchant_id, d.endpoint_id, d.event_seq FROM deliveries d {_DEAD}
                 ORDER BY d.merchant_id, d.endpoint_id, d.event_seq LIMIT $4 FOR UPDATE) n
         WHERE d.merchant_id = n.merchant_id AND d.endpoint_id = n.endpoint_id AND d.event_seq = n.event_seq
           AND d.state = 'DEAD'
        """,  # noqa: S608 - own conditions
        letters.merchant_id,
        letters.endpoint_id,
        letters.seq,
        LETTERS_AT_ONCE_MAX,
    )
