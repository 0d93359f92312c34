"""The workers that are alive, by their heartbeats on the database's clock.

A worker beats once a second. It is dead `ALIVE_SECONDS` after its last heartbeat, or as soon as it has left. Living workers
divide limits among themselves, and an idempotency key is in flight only while its owner is alive. A worker that was only slow may
find that another one has taken over its keys: every operation is idempotent by its own id, so nothing happens twice.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import metadata
from uuid import UUID

from server.db.connection import Connection

ALIVE_SECONDS = 3.0
STEP_SECONDS = 5.0
"""A clock that goes back by more than this, or ahead by more than `GAP_SECONDS` between two heartbeats, has jumped."""

GAP_SECONDS = 3_600.0
_VERSION = metadata.version("florin")
ALIVE = f"seen_at BETWEEN now() - interval '{ALIVE_SECONDS} s' AND now() + interval '{STEP_SECONDS} s'"


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat that was committed: the number of living workers, this one's place among them, and the database's time.

    `went_back`: the database's clock is behind the time of an earlier heartbeat.
    """

    workers: int
    rank: int
    database_now: datetime
    went_back: bool


_BEAT = f"""
WITH clock AS (
    SELECT seen_at FROM database_clock
), seen AS (
    INSERT INTO database_clock AS c (seen_at, steady_since) VALUES (now(), now())
    ON CONFLICT (id) DO UPDATE
       SET seen_at = now(),
           steady_since = CASE WHEN now() > c.seen_at - interval '{STEP_SECONDS} s'
                                AND now() < c.seen_at + interval '{GAP_SECONDS} s'
                               THEN c.steady_since ELSE now() END
), beat AS (
    INSERT INTO workers (id, seen_at, version) VALUES ($1, now(), $2) ON CONFLICT (id) DO UPDATE SET seen_at = now()
)
SELECT (SELECT count(*) FROM workers WHERE {ALIVE} AND id <> $1) + 1,
       (SELECT count(*) FROM workers WHERE {ALIVE} AND id < $1),
       clock_timestamp(),
       coalesce((SELECT seen_at > now() + interval '{STEP_SECONDS} s' FROM clock), false)
"""  # noqa: S608 - numbers of ours


async def beat(connection: Connection, worker_id: UUID) -> Beat:
    """Record that this worker is alive."""
    return Beat(*(await connection.query(_BEAT, worker_id, _VERSION))[0])


async def leave(connection: Connection, worker_id: UUID) -> None:
    """Record that a worker has ended, so that nobody waits for what it had in flight."""
    await connection.run("DELETE FROM workers WHERE id = $1", worker_id)


async def forget_workers(connection: Connection, *, older_than_seconds: float) -> None:
    """Remove workers that have been gone for long."""
    await connection.run("DELETE FROM workers WHERE seen_at < now() - make_interval(secs => $1::float8)", older_than_seconds)


async def clock_is_steady(connection: Connection, *, seconds: float) -> bool:
    """Return whether the database's clock has run without a jump, watched by heartbeats, for that long."""
    rows = await connection.query("SELECT now() - steady_since FROM database_clock")
    return bool(rows) and rows[0][0] >= timedelta(seconds=seconds)
