"""State of the readers of events: the positions of named consumers, and tickets for browsers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from core.ids import MerchantId
from server.db import json_records
from server.db.connection import Connection

CONSUMERS_MAX = 100


@dataclass(frozen=True, slots=True)
class Consumer:
    """A named reader. Everything up to `acked_seq` has been handled."""

    name: str
    acked_seq: int
    created_at: datetime
    updated_at: datetime


class Ack(msgspec.Struct, frozen=True):
    """A consumer has handled everything up to an event, at that time."""

    merchant_id: MerchantId
    consumer: str
    seq: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The permission of a ticket: one connection to the stream, from pages of one origin."""

    merchant_id: MerchantId
    key_id: UUID
    origin: str
    event_types: tuple[str, ...] | None
    consumer: str | None
    expires_at: datetime


async def list_consumers(connection: Connection, merchant_id: MerchantId) -> list[Consumer]:
    """A merchant's consumers, by name."""
    rows = await connection.query(
        "SELECT consumer, acked_seq, created_at, updated_at FROM stream_cursors WHERE merchant_id = $1 ORDER BY consumer",
        merchant_id,
    )
    return [Consumer(*row) for row in rows]


async def find_consumer(connection: Connection, merchant_id: MerchantId, name: str) -> Consumer | None:
    """Return the consumer of that name."""
    rows = await connection.query(
        "SELECT consumer, acked_seq, created_at, updated_at FROM stream_cursors WHERE merchant_id = $1 AND consumer = $2",
        merchant_id,
        name,
    )
    return Consumer(*rows[0]) if rows else None


async def place_consumer(
    connection: Connection, merchant_id: MerchantId, name: str, *, acked_seq: int, now: datetime
) -> Consumer | None:
    """Set a consumer's position, forward or back. Returns None if the merchant already has `CONSUMERS_MAX` others."""
    async with connection.atomic():
        await connection.query("SELECT pg_advisory_xact_lock(hashtextextended('consumers ' || $1::text, 0))", merchant_id)
        rows = await connection.query(
            """
            INSERT INTO stream_cursors AS c (merchant_id, consumer, acked_seq, created_at, updated_at)
            SELECT $1, $2, $3, $4, $4
             WHERE (SELECT count(*) FROM stream_cursors WHERE merchant_id = $1 AND consumer <> $2) < $5
            ON CONFLICT (merchant_id, consumer) DO UPDATE SET acked_seq = excluded.acked_seq, updated_at = excluded.updated_at
            RETURNING consumer, acked_seq, created_at, updated_at
            """,
            merchant_id,
            name,
            acked_seq,
            now,
            CONSUMERS_MAX,
        )
    return Consumer(*rows[0]) if rows else None


async def count_consumers(connection: Connection, merchant_id: MerchantId) -> int:
    """The number of a merchant's consumers."""
    rows = await connection.query("SELECT count(*) FROM stream_cursors WHERE merchant_id = $1", merchant_id)
    total: int = rows[0][0]
    return total


async def write_acks(connection: Connection, acks: Sequence[Ack]) -> None:
    """Move consumers forward, never back and never past the last event. A consumer that was placed after its acknowledgement is
    not moved.
    """
    await connection.run(
        f"""
        INSERT INTO stream_cursors AS c (merchant_id, consumer, acked_seq, created_at, updated_at)
        SELECT i.merchant_id, i.consumer, i.seq, i.at, i.at
          FROM json_to_recordset($1::json) AS i ({json_records.columns(Ack)})
          JOIN merchant_sequences s ON s.merchant_id = i.merchant_id AND s.last_seq >= i.seq
         WHERE EXISTS (SELECT FROM stream_cursors k WHERE k.merchant_id = i.merchant_id AND k.consumer = i.consumer)
            OR (SELECT count(*) FROM stream_cursors k WHERE k.merchant_id = i.merchant_id) < $2
         ORDER BY i.merchant_id, i.consumer
        ON CONFLICT (merchant_id, consumer) DO UPDATE
           SET acked_seq = excluded.acked_seq, updated_at = excluded.updated_at
         WHERE c.acked_seq < excluded.acked_seq AND c.updated_at <= excluded.updated_at
        """,  # noqa: S608 - own columns
        json_records.encode(acks),
        CONSUMERS_MAX,
    )


async def remove_consumer(connection: Connection, merchant_id: MerchantId, name: str) -> bool:
    """Forget a consumer. Returns whether there was one."""
    return await connection.run("DELETE FROM stream_cursors WHERE merchant_id = $1 AND consumer = $2", merchant_id, name) == 1


async def add_ticket(connection: Connection, ticket: Ticket, *, ticket_sha256: bytes) -> None:
    """Store a ticket by its hash."""
    await connection.run(
        """
        INSERT INTO stream_tickets (merchant_id, ticket_sha256, key_id, origin, event_types, consumer, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        """,
        ticket.merchant_id,
        ticket_sha256,
        ticket.key_id,
        ticket.origin,
        list(ticket.event_types) if ticket.event_types is not None else None,
        ticket.consumer,
        ticket.expires_at,
    )


async def use_ticket(connection: Connection, merchant_id: MerchantId, *, ticket_sha256: bytes, now: datetime) -> Ticket | None:
    """Redeem a ticket, once. Returns None if it does not exist, is too old, or its key was revoked or has expired."""
    rows = await connection.query(
        """
        DELETE FROM stream_tickets t USING api_keys k
         WHERE t.merchant_id = $1 AND t.ticket_sha256 = $2 AND t.expires_at > $3
           AND k.merchant_id = t.merchant_id AND k.id = t.key_id AND k.revoked_at IS NULL
           AND (k.expires_at IS NULL OR k.expires_at > $3)
        RETURNING t.key_id, t.origin, t.event_types, t.consumer, t.expires_at
        """,
        merchant_id,
        ticket_sha256,
        now,
    )
    if not rows:
        return None
    key_id, origin, event_types, consumer, expires_at = rows[0]
    return Ticket(
        merchant_id=merchant_id,
        key_id=key_id,
        origin=origin,
        event_types=tuple(event_types) if event_types is not None else None,
        consumer=consumer,
        expires_at=expires_at,
    )


async def count_tickets(connection: Connection, merchant_id: MerchantId, *, now: datetime) -> int:
    """The number of a merchant's tickets that can still be used."""
    rows = await connection.query(
        "SELECT count(*) FROM stream_tickets WHERE merchant_id = $1 AND expires_at > $2", merchant_id, now
    )
    total: int = rows[0][0]
    return total


async def prune_tickets(connection: Connection, *, now: datetime, limit: int) -> int:
    """Delete up to that many expired tickets. Returns the number deleted."""
    return await connection.run(
        """
        DELETE FROM stream_tickets t
         USING (SELECT merchant_id, ticket_sha256 FROM stream_tickets WHERE expires_at < $1 LIMIT $2) old
         WHERE (t.merchant_id, t.ticket_sha256) = (old.merchant_id, old.ticket_sha256)
        """,
        now,
        limit,
    )
