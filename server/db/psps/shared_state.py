"""State of a PSP account that all workers share: the schedule of its rate, its breaker, and the number of workers.

Each is a lease on the database's clock. Losing all of it costs nothing but a moment of caution.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import PspAccountId
from server.db.connection import Connection

WORKER_SECONDS = 5.0
"""A worker counts as alive for this time after it was last seen."""

PROBE_SECONDS = 10.0
"""The time that one worker has to find out whether a PSP has recovered."""


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """A breaker that some worker has opened, with the seconds for which it stays open, another worker's probe included; 0 or less
    if a probe is allowed.
    """

    account_id: PspAccountId
    seconds_left: float


async def reserve_slots(connection: Connection, account_id: PspAccountId, *, slots: int, interval_seconds: float) -> float:
    """Reserve the next range of the account's schedule. Returns the seconds until it begins."""
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


async def record_worker(connection: Connection, worker_id: UUID) -> int:
    """Record that this worker is alive. Returns the number of living workers."""
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
    """The breakers that are open or wait for a probe."""
    rows = await connection.query(
        """
        SELECT psp_account_id, extract(epoch FROM greatest(open_until, probe_until) - now())::float8
          FROM psp_states WHERE open_until IS NOT NULL ORDER BY psp_account_id
        """
    )
    return [OpenBreaker(PspAccountId(row[0]), row[1]) for row in rows]


async def open_breaker(connection: Connection, account_id: PspAccountId, *, seconds: float) -> None:
    """Open the account's breaker for all workers, for that many seconds."""
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
    """Close the account's breaker for all workers."""
    await connection.run(
        "UPDATE psp_states SET open_until = NULL, probe_until = NULL WHERE psp_account_id = $1 AND open_until IS NOT NULL",
        account_id,
    )


async def claim_probe(connection: Connection, account_id: PspAccountId) -> bool:
    """Return whether this worker may probe the account now."""
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
    """A lease to read an account's list of events: the time up to which it was read, or None, and the current time."""

    read_until: datetime | None
    now: datetime


async def claim_reading(
    connection: Connection, account_id: PspAccountId, *, every_seconds: float, lease_seconds: float
) -> Reading | None:
    """Claim the reading of the account's list of events for `lease_seconds`. Returns None if another worker is reading it, or if
    it was read less than `every_seconds` ago.
    """
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
    """Record the time up to which the list is read. With `is_last` the lease ends."""
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
