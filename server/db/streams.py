"""What the readers of events leave in the database: how far a named consumer has come, and tickets for browsers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import MerchantId
from server.db.arrays import plain, quoted, uuids
from server.db.connection import Connection

CONSUMERS_MAX = 100


@dataclass(frozen=True, slots=True)
class Consumer:
    """A named reader. Everything up to `acked_seq` has been dealt with."""

    name: str
    acked_seq: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a ticket allows: one connection to the stream, from pages of one origin."""

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
    """The consumer of that name."""
    rows = await connection.query(
        "SELECT consumer, acked_seq, created_at, updated_at FROM stream_cursors WHERE merchant_id = $1 AND consumer = $2",
        merchant_id,
        name,
    )
    return Consumer(*rows[0]) if rows else None


async def place_consumer(
    connection: Connection, merchant_id: MerchantId, name: str, *, acked_seq: int, only_new: bool, now: datetime
) -> Consumer | None:
    """Put a consumer where it shall go on, forward or back, or, with `only_new`, only where there is none yet.

    None where the merchant has `CONSUMERS_MAX` others.
    """
    rows = await connection.query(
        """
        INSERT INTO stream_cursors AS c (merchant_id, consumer, acked_seq, created_at, updated_at)
        SELECT $1, $2, $3, $4, $4
         WHERE (SELECT count(*) FROM stream_cursors WHERE merchant_id = $1 AND consumer <> $2) < $5
        ON CONFLICT (merchant_id, consumer) DO UPDATE
           SET acked_seq = CASE WHEN $6 THEN c.acked_seq ELSE excluded.acked_seq END,
               updated_at = CASE WHEN $6 THEN c.updated_at ELSE excluded.updated_at END
        RETURNING consumer, acked_seq, created_at, updated_at
        """,
        merchant_id,
        name,
        acked_seq,
        now,
        CONSUMERS_MAX,
        only_new,
    )
    return Consumer(*rows[0]) if rows else None


async def write_acks(connection: Connection, acks: Sequence[tuple[MerchantId, str, int]], *, now: datetime) -> None:
    """Move consumers forward, never back; one that was removed meanwhile stays removed."""
    await connection.run(
        """
        UPDATE stream_cursors c
           SET acked_seq = i.seq, updated_at = $4
          FROM (SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS u (merchant_id, consumer, seq)
                 ORDER BY merchant_id, consumer) i
         WHERE c.merchant_id = i.merchant_id AND c.consumer = i.consumer AND c.acked_seq < i.seq
        """,
        uuids([merchant_id for merchant_id, _, _ in acks]),
        quoted([name for _, name, _ in acks]),
        plain([seq for _, _, seq in acks]),
        now,
    )


async def remove_consumer(connection: Connection, merchant_id: MerchantId, name: str) -> bool:
    """Forget a consumer; whether there was one."""
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
    """Take a ticket, once; None where there is none, or it is too old, or its key has ended."""
    rows = await connection.query(
        """
        DELETE FROM stream_tickets t USING api_keys k
         WHERE t.merchant_id = $1 AND t.ticket_sha256 = $2 AND t.expires_at > $3
           AND k.merchant_id = t.merchant_id AND k.id = t.key_id AND k.revoked_at IS NULL
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


async def prune_tickets(connection: Connection, *, now: datetime) -> int:
    """Forget tickets that nobody has used; how many."""
    return await connection.run("DELETE FROM stream_tickets WHERE expires_at < $1", now)
