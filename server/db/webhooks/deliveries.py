"""Deliveries of events to merchants' webhook endpoints: claiming due ones and writing their results.

`due_at` is both the schedule and the lease of a `parallel` delivery: a claim moves it ahead by the lease and counts an attempt,
so a message that kills its worker uses up its attempts too. `attempts` is the fencing token: only the claim that made an attempt
can write its result. `ordered` deliveries have no due time of their own; see `server.db.webhooks.ordered_deliveries`. Due
deliveries are looked up endpoint by endpoint, so an endpoint with a million of them costs as much as one with a single one.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from core.ids import EndpointId, EventId, MerchantId
from core.retry import DELIVERY_DELAYS_SECONDS
from server.db import json_records
from server.db.connection import Connection
from server.db.events.events import Event

ATTEMPTS_MAX = len(DELIVERY_DELAYS_SECONDS)
_START = (UUID(int=0), UUID(int=0))


class ClaimedDelivery(msgspec.Struct, frozen=True):
    """A delivery claimed until its lease ends. `attempt` counts from 1."""

    event: Event
    endpoint_id: EndpointId
    attempt: int
    is_ordered: bool = False


class DeliveryResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an attempt. `retry_seconds` None with `delivered` False means that there is no further attempt.

    `id` names a failed attempt in the log. `response` is a redacted excerpt of the reply.
    """

    id: UUID | None = None
    claimed: ClaimedDelivery
    delivered: bool
    retry_seconds: float | None = None
    status: int | None = None
    error: str | None = None
    response: str | None = None
    milliseconds: int = 0
    is_dropped: bool = False
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingEndpoint:
    """An endpoint with unfinished deliveries. `is_due`: some can be attempted now."""

    merchant_id: MerchantId
    endpoint_id: EndpointId
    is_ordered: bool
    is_due: bool
    is_enabled: bool


async def endpoints_with_deliveries(
    connection: Connection, *, after: tuple[UUID, UUID] = _START, is_ordered: bool, limit: int
) -> list[WaitingEndpoint]:
    """Endpoints with unfinished deliveries after `after`, by merchant and endpoint: a loose index scan with one probe per
    endpoint.
    """
    index = "is_ordered AND state = 'PENDING'" if is_ordered else "due_at IS NOT NULL"
    order = "event_seq" if is_ordered else "due_at"
    rows = await connection.query(
        f"""
        WITH RECURSIVE waiting AS (
            (SELECT merchant_id, endpoint_id, due_at FROM deliveries
              WHERE {index} AND (merchant_id, endpoint_id) > ($1, $2)
              ORDER BY merchant_id, endpoint_id, {order} LIMIT 1)
            UNION ALL
            SELECT n.merchant_id, n.endpoint_id, n.due_at
              FROM waiting w CROSS JOIN LATERAL (
                    SELECT d.merchant_id, d.endpoint_id, d.due_at FROM deliveries d
                     WHERE {index} AND (d.merchant_id, d.endpoint_id) > (w.merchant_id, w.endpoint_id)
                     ORDER BY d.merchant_id, d.endpoint_id, d.{order} LIMIT 1) n
        ), found AS (
            SELECT merchant_id, endpoint_id, due_at FROM waiting LIMIT $3
        )
        SELECT f.merchant_id, f.endpoint_id, coalesce(e.enabled, false),
               CASE WHEN f.due_at IS NOT NULL THEN f.due_at <= now()
                    ELSE (e.held_until IS NULL OR e.held_until <= now()) AND (e.lease_until IS NULL OR e.lease_until <= now())
                END IS NOT FALSE
          FROM found f LEFT JOIN webhook_endpoints e ON e.merchant_id = f.merchant_id AND e.id = f.endpoint_id
        """,  # noqa: S608 - own conditions
        *after,
        limit,
    )
    return [
        WaitingEndpoint(
            merchant_id=MerchantId(merchant_id),
            endpoint_id=EndpointId(endpoint_id),
            is_ordered=is_ordered,
            is_enabled=is_enabled,
            is_due=is_due,
        )
        for merchant_id, endpoint_id, is_enabled, is_due in rows
    ]


async def claim_due_deliveries(
    connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, *, limit: int, lease_seconds: float
) -> list[ClaimedDelivery]:
    """Claim due deliveries of one endpoint, the longest due first. One that has used all attempts becomes a dead letter."""
    rows = await connection.query(
        """
        WITH due AS (
            SELECT event_seq FROM deliveries
             WHERE merchant_id = $1 AND endpoint_id = $2 AND due_at <= now() ORDER BY due_at LIMIT $3 FOR UPDATE
        ), claimed AS (
            UPDATE deliveries d
               SET state = CASE WHEN d.attempts < $5 THEN d.state ELSE 'DEAD' END,
                   due_at = CASE WHEN d.attempts < $5 THEN now() + make_interval(secs => $4::float8) END,
                   attempts = least(d.attempts + 1, $5), updated_at = now(),
                   last_error = CASE WHEN d.attempts < $5 THEN d.last_error
                                     ELSE coalesce(d.last_error, 'the worker ended in the last attempt') END
              FROM due
             WHERE d.merchant_id = $1 AND d.endpoint_id = $2 AND d.event_seq = due.event_seq AND d.due_at <= now()
            RETURNING d.event_seq, d.attempts, d.state
        )
        SELECT c.event_seq, c.attempts, e.id, e.type, e.data, e.created_at
          FROM claimed c JOIN events e ON e.merchant_id = $1 AND e.seq = c.event_seq AND c.state = 'PENDING'
         ORDER BY c.event_seq
        """,
        merchant_id,
        endpoint_id,
        limit,
        lease_seconds,
        ATTEMPTS_MAX,
    )
    return [
        ClaimedDelivery(
            Event(
                merchant_id=merchant_id,
                seq=seq,
                id=EventId(event_id),
                type=event_type,
                data=data.encode(),
                created_at=created_at,
            ),
            endpoint_id,
            attempts,
        )
        for seq, attempts, event_id, event_type, data, created_at in rows
    ]


class GivenBackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A claim that was not attempted."""

    merchant_id: UUID
    endpoint_id: UUID
    event_seq: int
    attempts: int
    seconds: float


async def give_back(connection: Connection, claims: Sequence[tuple[ClaimedDelivery, float]]) -> None:
    """Release claims that were not attempted: the attempt does not count, and they are due again after that many seconds."""
    await connection.run(
        f"""
        UPDATE deliveries d
           SET attempts = d.attempts - 1, updated_at = now(),
               due_at = CASE WHEN NOT d.is_ordered THEN now() + make_interval(secs => i.seconds) END
          FROM (SELECT * FROM json_to_recordset($1::json) AS u ({json_records.columns(GivenBackRecord)})
                 ORDER BY merchant_id, endpoint_id, event_seq) i
         WHERE d.merchant_id = i.merchant_id AND d.endpoint_id = i.endpoint_id AND d.event_seq = i.event_seq
           AND d.attempts = i.attempts AND d.state = 'PENDING'
        """,  # noqa: S608 - own columns
        json_records.encode(
            [
                GivenBackRecord(
                    merchant_id=one.event.merchant_id,
                    endpoint_id=one.endpoint_id,
                    event_seq=one.event.seq,
                    attempts=one.attempt,
                    seconds=seconds,
                )
                for one, seconds in claims
            ]
        ),
    )


async def give_up_deliveries(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, *, limit: int) -> int:
    """Give up the unfinished deliveries of an endpoint: dead letters for a disabled one, dropped for a deleted or a paused
    one, which keeps its events by their numbers. Returns their number.
    """
    return await connection.run(
        """
        WITH endpoint AS (
            SELECT disabled_reason FROM webhook_endpoints WHERE merchant_id = $1 AND id = $2 AND NOT enabled
        ), waiting AS (
            (SELECT event_seq FROM deliveries
              WHERE merchant_id = $1 AND endpoint_id = $2 AND due_at <= now() ORDER BY due_at LIMIT $3)
            UNION
            (SELECT event_seq FROM deliveries
              WHERE merchant_id = $1 AND endpoint_id = $2 AND is_ordered AND state = 'PENDING' ORDER BY event_seq LIMIT $3)
        )
        UPDATE deliveries d
           SET state = CASE WHEN e.disabled_reason IN ('deleted', 'paused') THEN 'DROPPED' ELSE 'DEAD' END,
               due_at = NULL, updated_at = now(),
               last_error = coalesce('the endpoint is disabled; before: ' || d.last_error, 'the endpoint is disabled')
          FROM waiting w, endpoint e
         WHERE d.merchant_id = $1 AND d.endpoint_id = $2 AND d.event_seq = w.event_seq AND d.state = 'PENDING'
        """,
        merchant_id,
        endpoint_id,
        limit,
    )


class DeliveryResultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an attempt as the statement reads it."""

    merchant_id: UUID
    endpoint_id: UUID
    event_seq: int
    attempts: int
    state: str
    retry_seconds: float | None
    status: int | None
    error: str | None
    milliseconds: int
    response: str | None
    id: UUID | None
    at: datetime


_WRITE_RESULTS = f"""
WITH input AS (
    SELECT * FROM json_to_recordset($1::json) AS i ({json_records.columns(DeliveryResultRecord)})
), written AS (
    UPDATE deliveries d
       SET state = i.state, updated_at = now(),
           due_at = CASE WHEN i.state = 'PENDING' AND NOT d.is_ordered
                         THEN now() + make_interval(secs => i.retry_seconds) END,
           last_status = i.status, last_error = i.error, last_milliseconds = i.milliseconds, last_response = i.response
      FROM input i
     WHERE d.merchant_id = i.merchant_id AND d.endpoint_id = i.endpoint_id AND d.event_seq = i.event_seq
       AND d.attempts = i.attempts AND d.state = 'PENDING'
    RETURNING i.*
), logged AS (
    INSERT INTO delivery_attempts (
        merchant_id, endpoint_id, event_seq, id, attempt, status, error, milliseconds, response, created_at)
    SELECT merchant_id, endpoint_id, event_seq, id, attempts, status, error, milliseconds, response, at
      FROM written WHERE error IS NOT NULL
    ON CONFLICT (merchant_id, endpoint_id, event_seq, id) DO NOTHING
)
SELECT endpoint_id, event_seq FROM written
"""  # noqa: S608 - own columns


class DeliveryResultGroup:
    """Writes results of attempts, and failed attempts to the log. The result is True if the claim still held."""

    def conflict_key(self, item: DeliveryResult) -> Hashable:
        """The key of an item: its delivery, which is in a group only once."""
        return (item.claimed.endpoint_id, item.claimed.event.seq)

    async def write(self, connection: Connection, items: Sequence[DeliveryResult]) -> list[bool]:
        """Write the group."""
        rows = await connection.query(_WRITE_RESULTS, json_records.encode([_record(item) for item in items]))
        written = set(rows)
        return [(item.claimed.endpoint_id, item.claimed.event.seq) in written for item in items]

    async def recognize(self, connection: Connection, items: Sequence[DeliveryResult]) -> list[bool | None]:
        """Nothing needs recognizing: writing a result twice changes nothing."""
        del connection
        return [None] * len(items)


def _record(item: DeliveryResult) -> DeliveryResultRecord:
    return DeliveryResultRecord(
        merchant_id=item.claimed.event.merchant_id,
        endpoint_id=item.claimed.endpoint_id,
        event_seq=item.claimed.event.seq,
        attempts=item.claimed.attempt,
        state=_state(item),
        retry_seconds=item.retry_seconds,
        status=item.status,
        error=item.error,
        milliseconds=item.milliseconds,
        response=item.response,
        id=item.id,
        at=item.at,
    )


def _state(item: DeliveryResult) -> str:
    if item.delivered:
        return "DELIVERED"
    if item.is_dropped:
        return "DROPPED"
    return "DEAD" if item.retry_seconds is None else "PENDING"
