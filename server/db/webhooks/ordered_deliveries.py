"""Ordered deliveries: one worker at a time holds an endpoint and sends its events by number.

The lease is on the endpoint's row and uses the database's clock. Its token fences every claim, so a worker that was paused and
continues after its lease has ended sends nothing out of turn. The time of the next attempt also belongs to the endpoint
(`held_until`): until then nothing is sent to it, because an event that fails holds back the later ones.
"""

from uuid import UUID

from core.ids import EndpointId, EventId, MerchantId
from server.db.connection import Connection
from server.db.events.events import Event
from server.db.webhooks.deliveries import ATTEMPTS_MAX, ClaimedDelivery


async def take_endpoint(
    connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, token: UUID, *, lease_seconds: float
) -> bool:
    """Take the lease of an endpoint. Returns False if another worker holds it, or nothing may be sent yet."""
    touched = await connection.run(
        """
        UPDATE webhook_endpoints SET lease_token = $3, lease_until = now() + make_interval(secs => $4::float8)
         WHERE merchant_id = $1 AND id = $2 AND enabled AND (lease_until IS NULL OR lease_until <= now())
           AND (held_until IS NULL OR held_until <= now())
        """,
        merchant_id,
        endpoint_id,
        token,
        lease_seconds,
    )
    return touched == 1


async def claim_next(
    connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, token: UUID, *, lease_seconds: float
) -> tuple[ClaimedDelivery | None, bool]:
    """Claim the next delivery, renewing the lease and counting an attempt, and tell whether to ask again.

    Returns None and False if nothing waits or the lease is lost; None and True if the next delivery had used all its attempts and
    is dead now.
    """
    rows = await connection.query(
        """
        WITH held AS (
            UPDATE webhook_endpoints SET lease_until = now() + make_interval(secs => $4::float8)
             WHERE merchant_id = $1 AND id = $2 AND lease_token = $3 AND lease_until > now() AND enabled
            RETURNING id
        ), head AS (
            SELECT d.event_seq FROM deliveries d JOIN held h ON h.id = d.endpoint_id
             WHERE d.merchant_id = $1 AND d.endpoint_id = $2 AND d.is_ordered AND d.state = 'PENDING'
             ORDER BY d.event_seq LIMIT 1
        ), claimed AS (
            UPDATE deliveries d
               SET state = CASE WHEN d.attempts < $5 THEN d.state ELSE 'DEAD' END, attempts = least(d.attempts + 1, $5),
                   updated_at = now(),
                   last_error = CASE WHEN d.attempts < $5 THEN d.last_error
                                     ELSE coalesce(d.last_error, 'the worker ended in the last attempt') END
              FROM head
             WHERE d.merchant_id = $1 AND d.endpoint_id = $2 AND d.event_seq = head.event_seq AND d.state = 'PENDING'
            RETURNING d.event_seq, d.attempts, d.state
        )
        SELECT c.event_seq, c.attempts, c.state, e.id, e.type, e.data, e.created_at
          FROM claimed c JOIN events e ON e.merchant_id = $1 AND e.seq = c.event_seq
        """,
        merchant_id,
        endpoint_id,
        token,
        lease_seconds,
        ATTEMPTS_MAX,
    )
    if not rows:
        return None, False
    seq, attempts, state, event_id, event_type, data, created_at = rows[0]
    if state != "PENDING":
        return None, True
    event = Event(
        merchant_id=merchant_id, seq=seq, id=EventId(event_id), type=event_type, data=data.encode(), created_at=created_at
    )
    return ClaimedDelivery(event, endpoint_id, attempts, is_ordered=True), True


async def release_endpoint(
    connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, token: UUID, *, held_seconds: float = 0.0
) -> None:
    """End the lease. Nothing is sent to the endpoint for that many seconds."""
    await connection.run(
        """
        UPDATE webhook_endpoints
           SET lease_until = NULL, lease_token = NULL,
               held_until = CASE WHEN $4::float8 > 0 THEN now() + make_interval(secs => $4::float8) END
         WHERE merchant_id = $1 AND id = $2 AND lease_token = $3
        """,
        merchant_id,
        endpoint_id,
        token,
        held_seconds,
    )


async def has_waiting(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId) -> bool:
    """Return whether any delivery to the endpoint waits for its turn."""
    rows = await connection.query(
        """
        SELECT 1 FROM deliveries WHERE merchant_id = $1 AND endpoint_id = $2 AND is_ordered AND state = 'PENDING' LIMIT 1
        """,
        merchant_id,
        endpoint_id,
    )
    return bool(rows)
