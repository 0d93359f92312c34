"""State of a PSP account that all workers share: the schedule of its rate, its breaker, and the reading of its list of events.

Each is a lease on the database's clock, and one that lies further ahead than it can was taken while that clock stood ahead: it
counts for nothing. Losing all of it costs nothing but a moment of caution.
"""

from dataclasses import dataclass
from datetime import datetime

from core.ids import PspAccountId
from server.db.connection import Connection

RATE_AHEAD_SECONDS_MAX = 120.0
"""The schedule of a rate cannot be used up further ahead: each worker reserves a fraction of a second at a time."""

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
    begins_in_seconds = await _reserve(connection, account_id, slots * interval_seconds, within_seconds=None)
    assert begins_in_seconds is not None
    return begins_in_seconds


async def reserve_slot_soon(connection: Connection, account_id: PspAccountId, *, interval_seconds: float) -> float | None:
    """Reserve the next slot of the account's schedule if it begins within one interval. Returns the seconds until then, or
    None.
    """
    return await _reserve(connection, account_id, interval_seconds, within_seconds=interval_seconds)


async def _reserve(
    connection: Connection, account_id: PspAccountId, range_seconds: float, *, within_seconds: float | None
) -> float | None:
    rows = await connection.query(
        """
        INSERT INTO psp_states AS s (psp_account_id, rate_used_until) VALUES ($1, now() + make_interval(secs => $2::float8))
        ON CONFLICT (psp_account_id)
        DO UPDATE SET rate_used_until =
            CASE WHEN s.rate_used_until BETWEEN now() AND now() + make_interval(secs => $3::float8) THEN s.rate_used_until
                 ELSE now() END + make_interval(secs => $2::float8)
         WHERE $4::float8 IS NULL OR s.rate_used_until IS NULL
            OR s.rate_used_until < now() + make_interval(secs => $4::float8)
            OR s.rate_used_until > now() + make_interval(secs => $3::float8)
        RETURNING extract(epoch FROM s.rate_used_until - clock_timestamp())::float8
        """,
        account_id,
        range_seconds,
        RATE_AHEAD_SECONDS_MAX,
        within_seconds,
    )
    return max(rows[0][0] - range_seconds, 0.0) if rows else None


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


async def give_probe_back(connection: Connection, account_id: PspAccountId) -> None:
    """Let another call probe the account: the one that was to do it has sent nothing, or learned nothing."""
    await connection.run("UPDATE psp_states SET probe_until = NULL WHERE psp_account_id = $1", account_id)


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
