"""What all workers share about a PSP account: the schedule of its rate, its breaker, and how many workers there are.

Each of these is a lease, so it goes by the database's clock. Losing all of it costs nothing but a moment of caution.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import PspAccountId
from server.db.connection import Connection

WORKER_SECONDS = 5.0
"""How long a worker counts as alive after it was last seen."""

PROBE_SECONDS = 10.0
"""How long one worker has for finding out whether a PSP has recovered."""


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """A breaker that some worker has opened, and for how many seconds more, while another worker tries
    included; 0 or less where a probe may be tried."""

    account_id: PspAccountId
    seconds_left: float


async def reserve_slots(connection: Connection, account_id: PspAccountId, *, slots: int, interval_seconds: float) -> float:
    """Take the next share of the account's schedule; in how many seconds it begins."""
    rows = await connection.query(
        """
        INSERT INTO psp_states AS s (psp_account_id, rate_used_until) VALUES ($1, now() + make_interval(secs => $2::float8))
        ON CONFLICT (psp_account_id)
        DO UPDATE SET rate_used_until = greatest(s.rate_used_until, now()) + make_interval(secs => $2::float8)
        RETURNING extract(epoch FROM s.rate_used_until - clock_timestamp())::float8
        """,
        account_id,
        slots * interval_seconds,
    )
    ends_in_seconds: float = rows[0][0]
    return max(ends_in_seconds - slots * interval_seconds, 0.0)


async def see_worker(connection: Connection, worker_id: UUID) -> int:
    """This worker lives; how many do."""
    await connection.run(
        "INSERT INTO workers (id, seen_at) VALUES ($1, now()) ON CONFLICT (id) DO UPDATE SET seen_at = now()", worker_id
    )
    rows = await connection.query(
        "SELECT count(*) FROM workers WHERE seen_at > now() - make_interval(secs => $1::float8)", WORKER_SECONDS
    )
    return max(int(rows[0][0]), 1)


async def forget_workers(connection: Connection, *, older_than_seconds: float) -> None:
    """Remove workers that have been gone for long."""
    await connection.run("DELETE FROM workers WHERE seen_at < now() - make_interval(secs => $1::float8)", older_than_seconds)


async def list_open_breakers(connection: Connection) -> list[OpenBreaker]:
    """The breakers that are open, or wait for a probe."""
    rows = await connection.query(
        """
        SELECT psp_account_id, extract(epoch FROM greatest(open_until, probe_until) - now())::float8
          FROM psp_states WHERE open_until IS NOT NULL ORDER BY psp_account_id
        """
    )
    return [OpenBreaker(PspAccountId(row[0]), row[1]) for row in rows]


async def open_breaker(connection: Connection, account_id: PspAccountId, *, seconds: float) -> None:
    """Tell all workers to leave the account alone for so long."""
    await connection.run(
        """
        INSERT INTO psp_states AS s (psp_account_id, open_until) VALUES ($1, now() + make_interval(secs => $2::float8))
        ON CONFLICT (psp_account_id)
        DO UPDATE SET open_until = greatest(s.open_until, excluded.open_until), probe_until = NULL
        """,
        account_id,
        seconds,
    )


async def close_breaker(connection: Connection, account_id: PspAccountId) -> None:
    """Tell all workers that the account has recovered."""
    await connection.run(
        "UPDATE psp_states SET open_until = NULL, probe_until = NULL WHERE psp_account_id = $1 AND open_until IS NOT NULL",
        account_id,
    )


async def claim_probe(connection: Connection, account_id: PspAccountId) -> bool:
    """Whether this worker is the one to try the account now."""
    touched = await connection.run(
        """
        UPDATE psp_states SET probe_until = now() + make_interval(secs => $2::float8)
         WHERE psp_account_id = $1 AND open_until <= now() AND (probe_until IS NULL OR probe_until <= now())
        """,
        account_id,
        PROBE_SECONDS,
    )
    return touched == 1


@dataclass(frozen=True, slots=True)
class Reading:
    """A turn to read an account's list of events: until when it was read, None for never, and what time it is."""

    read_until: datetime | None
    now: datetime


async def claim_reading(
    connection: Connection, account_id: PspAccountId, *, every_seconds: float, lease_seconds: float
) -> Reading | None:
    """Whether this worker is the one to read the account's list of events now; it has `lease_seconds` for it."""
    rows = await connection.query(
        """
        INSERT INTO psp_states AS s (psp_account_id, events_due_at) VALUES ($1, now() + make_interval(secs => $3::float8))
        ON CONFLICT (psp_account_id) DO UPDATE SET events_due_at = now() + make_interval(secs => $3::float8)
         WHERE (s.events_due_at IS NULL OR s.events_due_at <= now())
           AND (s.events_read_until IS NULL OR s.events_read_until <= now() - make_interval(secs => $2::float8))
        RETURNING s.events_read_until, now()
        """,
        account_id,
        every_seconds,
        lease_seconds,
    )
    return Reading(*rows[0]) if rows else None


async def end_reading(connection: Connection, account_id: PspAccountId, *, until: datetime, is_last: bool) -> None:
    """The list is read until then; with the last part of it, it may be read again."""
    await connection.run(
        """
        UPDATE psp_states
           SET events_read_until = greatest(events_read_until, $2), events_due_at = CASE WHEN $3 THEN NULL ELSE events_due_at END
         WHERE psp_account_id = $1
        """,
        account_id,
        until,
        is_last,
    )
