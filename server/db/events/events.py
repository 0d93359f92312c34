"""Merchants' events: the one sequence behind webhooks, the stream and the pull API.

The event of a payment's change is written with the change (`server.db.payments.changes`); `append_event` writes every other
event. Invariant: a merchant's events are numbered without a gap, in the order of their commits, because the writer of an event
holds the lock of the merchant's row in `merchant_sequences` (promise:every-event).
"""

from collections.abc import Sequence as Several
from datetime import datetime
from uuid import UUID

import msgspec

from core.ids import EndpointId, EventId, MerchantId
from core.resumption import Sequence
from server.db.connection import Connection

IS_WANTED = "(e.event_types IS NULL OR {0} = ANY (e.event_types) OR split_part({0}, '.', 1) || '.*' = ANY (e.event_types))"
"""Matches an endpoint `e` that selects an event of a type, as `core.events.is_wanted` decides it."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A committed event. `data` is the object as the merchant sees it, in JSON."""

    merchant_id: MerchantId
    seq: int
    id: EventId
    type: str
    data: bytes
    created_at: datetime


async def find_sequence(connection: Connection, merchant_id: MerchantId) -> Sequence:
    """The state of a merchant's sequence."""
    rows = await connection.query(
        """
        SELECT (SELECT epoch FROM sequence_epochs ORDER BY started_at DESC, epoch LIMIT 1),
               (SELECT seq FROM events WHERE merchant_id = $1 ORDER BY seq LIMIT 1),
               coalesce((SELECT last_seq FROM merchant_sequences WHERE merchant_id = $1), 0)
        """,
        merchant_id,
    )
    epoch, first_seq, last_seq = rows[0]
    return Sequence(epoch=epoch, first_seq=first_seq or last_seq + 1, last_seq=last_seq)


async def find_epoch(connection: Connection) -> UUID:
    """The current epoch of sequence numbers."""
    rows = await connection.query("SELECT epoch FROM sequence_epochs ORDER BY started_at DESC, epoch LIMIT 1")
    epoch: UUID = rows[0][0]
    return epoch


async def find_last_seqs(connection: Connection, merchant_ids: Several[MerchantId]) -> dict[MerchantId, int]:
    """The number of the last event of each merchant; merchants without events are left out."""
    rows = await connection.query(
        "SELECT merchant_id, last_seq FROM merchant_sequences WHERE merchant_id = ANY ($1::uuid[])", list(merchant_ids)
    )
    return {MerchantId(merchant_id): last_seq for merchant_id, last_seq in rows}


async def list_events(connection: Connection, merchant_id: MerchantId, *, after_seq: int, limit: int) -> list[Event]:
    """The events behind a position, in order."""
    rows = await connection.query(
        "SELECT seq, id, type, data, created_at FROM events WHERE merchant_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        merchant_id,
        after_seq,
        limit,
    )
    return [_event(merchant_id, row) for row in rows]


async def find_recent(connection: Connection, merchant_id: MerchantId, event_id: EventId) -> Event | None:
    """The event of that id, if it is one of the merchant's last thousand."""
    rows = await connection.query(
        """
        SELECT seq, id, type, data, created_at FROM (
            SELECT seq, id, type, data, created_at FROM events WHERE merchant_id = $1 ORDER BY seq DESC LIMIT 1000) e
         WHERE id = $2
        """,
        merchant_id,
        event_id,
    )
    return _event(merchant_id, rows[0]) if rows else None


async def find_event(connection: Connection, merchant_id: MerchantId, seq: int) -> Event | None:
    """The merchant's event of that number."""
    found = await list_events(connection, merchant_id, after_seq=seq - 1, limit=1)
    return found[0] if found and found[0].seq == seq else None


def _event(merchant_id: MerchantId, row: tuple[int, UUID, str, str, datetime]) -> Event:
    seq, event_id, event_type, data, created_at = row
    return Event(
        merchant_id=merchant_id, seq=seq, id=EventId(event_id), type=event_type, data=data.encode(), created_at=created_at
    )


async def append_event(
    connection: Connection,
    merchant_id: MerchantId,
    event_id: EventId,
    *,
    event_type: str,
    data: bytes,
    now: datetime,
    only_to: EndpointId | None = None,
) -> Event:
    """Write an event that does not come from a payment's change, with its deliveries: to all matching endpoints, or to
    one only.
    """
    rows = await connection.query(
        f"""
        WITH sequence AS (
            INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq) VALUES ($1, 1, 0)
            ON CONFLICT (merchant_id) DO UPDATE SET last_seq = s.last_seq + 1
            RETURNING last_seq
        ), told AS (
            INSERT INTO events (merchant_id, seq, id, type, data, created_at)
            SELECT $1, last_seq, $2, $3, $4, $5 FROM sequence
            RETURNING merchant_id, seq, type
        ), sent AS (
            INSERT INTO deliveries (
                merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
            SELECT t.merchant_id, e.id, t.seq, 'PENDING', e.mode = 'ordered', 0,
                   CASE WHEN e.mode = 'parallel' THEN now() END, now(), now()
              FROM told t JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.enabled
               AND CASE WHEN $6::uuid IS NULL THEN {IS_WANTED.format("t.type")} ELSE e.id = $6 END
        )
        SELECT seq FROM told
        """,  # noqa: S608 - own conditions
        merchant_id,
        event_id,
        event_type,
        data.decode(),
        now,
        only_to,
    )
    return Event(merchant_id=merchant_id, seq=rows[0][0], id=event_id, type=event_type, data=data, created_at=now)
