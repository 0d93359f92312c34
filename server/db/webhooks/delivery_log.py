"""The history of deliveries for their merchants, and sending events again, alone or as a range.

A manual retry starts a new schedule of attempts. A range is spread out in time, so that an endpoint that has just recovered is
not flooded.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from core.ids import EndpointId, EventId, MerchantId
from server.db.connection import Connection
from server.db.events.events import IS_WANTED
from server.db.webhooks.deliveries import ATTEMPTS_MAX

REPLAY_PER_SECOND = 50
REPLAY_MAX = 10_000
ATTEMPTS_SHOWN_MAX = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """The state of a delivery. `due_at` is None if it waits for its turn or has ended."""

    endpoint_id: EndpointId
    seq: int
    event_id: EventId
    event_type: str
    state: str
    attempts: int
    due_at: datetime | None
    last_status: int | None
    last_error: str | None
    last_milliseconds: int | None
    last_response: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """A failed attempt."""

    id: UUID
    attempt: int
    status: int | None
    error: str
    milliseconds: int
    response: str | None
    created_at: datetime


_COLUMN_BY_FIELD = {
    "endpoint_id": "d.endpoint_id",
    "seq": "d.event_seq",
    "event_id": "e.id",
    "event_type": "e.type",
    "state": "d.state",
    "attempts": "d.attempts",
    "due_at": "d.due_at",
    "last_status": "d.last_status",
    "last_error": "d.last_error",
    "last_milliseconds": "d.last_milliseconds",
    "last_response": "d.last_response",
    "created_at": "d.created_at",
    "updated_at": "d.updated_at",
}
_COLUMNS = ", ".join(_COLUMN_BY_FIELD.values())
_ATTEMPT_FIELDS = ("id", "attempt", "status", "error", "milliseconds", "response", "created_at")


def _row(row: tuple[Any, ...]) -> DeliveryRow:
    return DeliveryRow(**dict(zip(_COLUMN_BY_FIELD, row, strict=True)))


async def list_deliveries(
    connection: Connection,
    merchant_id: MerchantId,
    endpoint_id: EndpointId,
    *,
    state: str | None,
    before_seq: int | None,
    limit: int,
) -> list[DeliveryRow]:
    """An endpoint's deliveries, the latest event first."""
    rows = await connection.query(
        f"""
        SELECT {_COLUMNS} FROM deliveries d JOIN events e ON e.merchant_id = d.merchant_id AND e.seq = d.event_seq
         WHERE d.merchant_id = $1 AND d.endpoint_id = $2 AND ($3::text IS NULL OR d.state = $3)
           AND ($4::bigint IS NULL OR d.event_seq < $4)
         ORDER BY d.event_seq DESC LIMIT $5
        """,  # noqa: S608 - own columns
        merchant_id,
        endpoint_id,
        state,
        before_seq,
        limit,
    )
    return [_row(row) for row in rows]


async def find_delivery(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, seq: int) -> DeliveryRow | None:
    """Return one delivery."""
    rows = await connection.query(
        f"""
        SELECT {_COLUMNS} FROM deliveries d JOIN events e ON e.merchant_id = d.merchant_id AND e.seq = d.event_seq
         WHERE d.merchant_id = $1 AND d.endpoint_id = $2 AND d.event_seq = $3
        """,  # noqa: S608 - own columns
        merchant_id,
        endpoint_id,
        seq,
    )
    return _row(rows[0]) if rows else None


async def list_failed_attempts(
    connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, seq: int
) -> list[FailedAttempt]:
    """A delivery's failed attempts: the latest `ATTEMPTS_SHOWN_MAX`, oldest first."""
    rows = await connection.query(
        f"""
        SELECT {", ".join(_ATTEMPT_FIELDS)} FROM delivery_attempts
         WHERE merchant_id = $1 AND endpoint_id = $2 AND event_seq = $3 ORDER BY id DESC LIMIT $4
        """,  # noqa: S608 - own columns
        merchant_id,
        endpoint_id,
        seq,
        ATTEMPTS_SHOWN_MAX,
    )
    return [FailedAttempt(**dict(zip(_ATTEMPT_FIELDS, row, strict=True))) for row in reversed(rows)]


async def resend(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, seq: int) -> bool:
    """Send one event again, whatever the state of its delivery. Returns False if there is no such event.

    A delivery that has ended restarts its attempts, out of turn; one that waits for its turn keeps its place.
    """
    touched = await connection.run(
        """
        INSERT INTO deliveries AS d (
            merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
        SELECT $1, $2, seq, 'PENDING', false, 0, now(), now(), now() FROM events WHERE merchant_id = $1 AND seq = $3
        ON CONFLICT (merchant_id, endpoint_id, event_seq) DO UPDATE
           SET state = 'PENDING', is_ordered = d.is_ordered AND d.state = 'PENDING',
               attempts = CASE d.state WHEN 'PENDING' THEN least(d.attempts, $4 - 1) ELSE 0 END,
               due_at = CASE WHEN d.is_ordered AND d.state = 'PENDING' THEN NULL ELSE now() END, updated_at = now()
        """,
        merchant_id,
        endpoint_id,
        seq,
        ATTEMPTS_MAX,
    )
    return touched == 1


async def replay(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, *, from_seq: int, to_seq: int) -> int:
    """Send a range of events again: those that the endpoint selects and that are not under way. Returns their number."""
    return await connection.run(
        f"""
        INSERT INTO deliveries AS d (
            merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
        SELECT t.merchant_id, e.id, t.seq, 'PENDING', e.mode = 'ordered', 0,
               CASE e.mode WHEN 'ordered' THEN NULL
                           ELSE now() + make_interval(secs => (row_number() OVER (ORDER BY t.seq) - 1) / $5::float8) END,
               now(), now()
          FROM events t JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.id = $2
           AND {IS_WANTED.format("t.type")}
         WHERE t.merchant_id = $1 AND t.seq BETWEEN $3 AND $4
         ORDER BY t.seq
        ON CONFLICT (merchant_id, endpoint_id, event_seq) DO UPDATE
           SET state = 'PENDING', is_ordered = excluded.is_ordered, attempts = 0, due_at = excluded.due_at, updated_at = now()
         WHERE d.state <> 'PENDING'
        """,  # noqa: S608 - own conditions
        merchant_id,
        endpoint_id,
        from_seq,
        to_seq,
        REPLAY_PER_SECOND,
    )


async def send_kept(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, *, from_seq: int) -> int:
    """Send what was kept for an endpoint while it was disabled or paused, in order. Returns the number of events."""
    return await connection.run(
        f"""
        INSERT INTO deliveries AS d (
            merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
        SELECT t.merchant_id, e.id, t.seq, 'PENDING', e.mode = 'ordered', 0,
               CASE e.mode WHEN 'ordered' THEN NULL
                           ELSE now() + make_interval(secs => (row_number() OVER (ORDER BY t.seq) - 1) / $4::float8) END,
               now(), now()
          FROM events t JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.id = $2
           AND {IS_WANTED.format("t.type")}
         WHERE t.merchant_id = $1 AND t.seq >= $3 AND t.type <> 'webhook_endpoint.test'
         ORDER BY t.seq
        ON CONFLICT (merchant_id, endpoint_id, event_seq) DO UPDATE
           SET state = 'PENDING', is_ordered = excluded.is_ordered, attempts = 0, due_at = excluded.due_at, updated_at = now()
         WHERE d.state IN ('DEAD', 'DROPPED') AND d.last_error LIKE 'the endpoint is disabled%'
        """,  # noqa: S608 - own conditions
        merchant_id,
        endpoint_id,
        from_seq,
        REPLAY_PER_SECOND,
    )


async def complete_kept(connection: Connection) -> int:
    """Make the deliveries of events that were being written while their endpoint was enabled again, so that they saw it disabled.
    Returns the number of endpoints.
    """
    return await connection.run(
        f"""
        WITH resumed AS (
            SELECT merchant_id, id, mode, event_types, kept_from_seq FROM webhook_endpoints
             WHERE kept_from_seq IS NOT NULL AND enabled AND updated_at < now() - interval '{KEPT_SECONDS} seconds'
             ORDER BY merchant_id, id FOR UPDATE
        ), missed AS (
            INSERT INTO deliveries (
                merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
            SELECT t.merchant_id, e.id, t.seq, 'PENDING', e.mode = 'ordered', 0, CASE e.mode WHEN 'parallel' THEN now() END,
                   now(), now()
              FROM resumed e JOIN events t ON t.merchant_id = e.merchant_id AND t.seq >= e.kept_from_seq
               AND t.type <> 'webhook_endpoint.test' AND {IS_WANTED.format("t.type")}
            ON CONFLICT (merchant_id, endpoint_id, event_seq) DO NOTHING
        )
        UPDATE webhook_endpoints e SET kept_from_seq = NULL
          FROM resumed r WHERE e.merchant_id = r.merchant_id AND e.id = r.id
        """  # noqa: S608 - own conditions
    )


KEPT_SECONDS = 20
"""Longer than writing an event can take."""


async def prune_attempts(connection: Connection, *, made_before: datetime, limit: int) -> int:
    """Delete up to that many attempts made before then. Returns the number deleted."""
    return await connection.run(
        """
        DELETE FROM delivery_attempts a
         USING (SELECT merchant_id, endpoint_id, event_seq, id FROM delivery_attempts WHERE created_at < $1 LIMIT $2) old
         WHERE (a.merchant_id, a.endpoint_id, a.event_seq, a.id) = (old.merchant_id, old.endpoint_id, old.event_seq, old.id)
        """,
        made_before,
        limit,
    )
