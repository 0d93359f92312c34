"""Deliveries of events to merchants' webhook endpoints: claiming what is due, and writing what came of it.

`due_at` is both the schedule and the lease: a claim moves it a lease ahead and counts an attempt, so a message that kills its
worker uses its attempts up as well. `attempts` is the fencing token: a result is written only by the claim that it belongs to.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from core.ids import EndpointId, EventId, MerchantId, PaymentId
from core.retry import DELIVERY_DELAYS_SECONDS
from server.db.arrays import plain, quoted, uuids
from server.db.change_batch import NewDelivery
from server.db.connection import Connection

ATTEMPTS_MAX = len(DELIVERY_DELAYS_SECONDS)


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that is ours until its lease ends. `attempt` counts from 1."""

    message: NewDelivery
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryResult:
    """What came of an attempt: `retry_seconds` None and `delivered` False means no further attempt.

    One that was not `made`, because its claim had grown too old, is given back and does not count.
    """

    claimed: ClaimedDelivery
    delivered: bool
    retry_seconds: float | None = None
    status: int | None = None
    error: str | None = None
    made: bool = True


async def merchants_with_due_deliveries(
    connection: Connection, *, but_not_to: Sequence[EndpointId], limit: int
) -> list[MerchantId]:
    """Whose deliveries are due and in nobody's hands, leaving out some endpoints."""
    rows = await connection.query(
        """
        SELECT merchant_id FROM deliveries WHERE due_at <= now() AND endpoint_id <> ALL ($2::uuid[])
         GROUP BY merchant_id ORDER BY min(due_at) LIMIT $1
        """,
        limit,
        plain(but_not_to),
    )
    return [MerchantId(row[0]) for row in rows]


async def claim_due_deliveries(
    connection: Connection,
    merchant_id: MerchantId,
    *,
    but_not_to: Sequence[EndpointId],
    limit: int,
    lease_seconds: float,
) -> list[ClaimedDelivery]:
    """Take due deliveries of one merchant, oldest event first; one whose attempts are used up is dead."""
    rows = await connection.query(
        """
        WITH due AS (
            SELECT endpoint_id, event_seq FROM deliveries
             WHERE merchant_id = $1 AND due_at <= now() AND endpoint_id <> ALL ($5::uuid[])
             ORDER BY endpoint_id, event_seq LIMIT $2 FOR UPDATE
        ), claimed AS (
            UPDATE deliveries d
               SET state = CASE WHEN d.attempts < $4 THEN d.state ELSE 'DEAD' END,
                   due_at = CASE WHEN d.attempts < $4 THEN now() + make_interval(secs => $3::float8) END,
                   attempts = least(d.attempts + 1, $4), updated_at = now()
              FROM due
             WHERE d.merchant_id = $1 AND d.endpoint_id = due.endpoint_id AND d.event_seq = due.event_seq AND d.due_at <= now()
            RETURNING d.endpoint_id, d.event_seq, d.attempts, d.state
        )
        SELECT c.endpoint_id, c.event_seq, c.attempts, e.id, e.type, e.data, e.payment_id, e.created_at
          FROM claimed c JOIN events e ON e.merchant_id = $1 AND e.seq = c.event_seq AND c.state = 'PENDING'
         ORDER BY c.event_seq
        """,
        merchant_id,
        limit,
        lease_seconds,
        ATTEMPTS_MAX,
        plain(but_not_to),
    )
    return [
        ClaimedDelivery(
            NewDelivery(
                merchant_id=merchant_id,
                endpoint_id=EndpointId(endpoint_id),
                event_seq=seq,
                event_id=EventId(event_id),
                event_type=event_type,
                event_data=data.encode(),
                payment_id=PaymentId(payment_id),
                created_at=created_at,
            ),
            attempts,
        )
        for endpoint_id, seq, attempts, event_id, event_type, data, payment_id, created_at in rows
    ]


class DeliveryResultBatch:
    """Writes results of attempts; True where the claim still held."""

    def conflict_key(self, item: DeliveryResult) -> Hashable:
        """A delivery is in one batch once."""
        return (item.claimed.message.endpoint_id, item.claimed.message.event_seq)

    async def write(self, connection: Connection, items: Sequence[DeliveryResult]) -> list[bool]:
        """Write the batch."""
        messages = [item.claimed.message for item in items]
        rows = await connection.query(
            """
            UPDATE deliveries d
               SET state = i.state, due_at = CASE WHEN i.state = 'PENDING' THEN now() + make_interval(secs => i.retry) END,
                   attempts = d.attempts - CASE WHEN i.made THEN 0 ELSE 1 END,
                   last_status = coalesce(i.status, d.last_status), last_error = i.error, updated_at = now()
              FROM unnest(
                    $1::uuid[], $2::uuid[], $3::bigint[], $4::integer[], $5::text[], $6::float8[], $7::integer[], $8::text[],
                    $9::boolean[]
                ) AS i (merchant_id, endpoint_id, event_seq, attempts, state, retry, status, error, made)
             WHERE d.merchant_id = i.merchant_id AND d.endpoint_id = i.endpoint_id AND d.event_seq = i.event_seq
               AND d.attempts = i.attempts AND d.state = 'PENDING'
            RETURNING d.merchant_id, d.endpoint_id, d.event_seq
            """,
            uuids([message.merchant_id for message in messages]),
            uuids([message.endpoint_id for message in messages]),
            plain([message.event_seq for message in messages]),
            plain(item.claimed.attempt for item in items),
            plain(_state(item) for item in items),
            plain(item.retry_seconds for item in items),
            plain(item.status for item in items),
            quoted(item.error for item in items),
            plain(item.made for item in items),
        )
        written = set(rows)
        return [(one.merchant_id, one.endpoint_id, one.event_seq) in written for one in messages]

    async def recognize(self, connection: Connection, items: Sequence[DeliveryResult]) -> list[bool | None]:
        """Writing a result twice changes nothing, so there is nothing to recognize."""
        del connection
        return [None] * len(items)


def _state(item: DeliveryResult) -> str:
    if item.delivered:
        return "DELIVERED"
    return "DEAD" if item.retry_seconds is None else "PENDING"
