"""The heartbeat of a worker: once a second, on a connection of its own, it writes that the worker is alive.

With each beat it reads the database's clock, counts the living workers, and ends the flights of requests that failed. If this
machine's clock and the database's come to differ too much, the worker ends (`server.clock`). It tells when the database's clock
has gone back.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import psycopg
import structlog
import trio

from core.errors import DatabaseUnavailable, FlorinError
from server.clock import SKEW_SECONDS_WARN, ClockSkewed, DatabaseClock, described
from server.concurrency.health import Health
from server.concurrency.worker_count import WorkerCount
from server.db.connection import Connection
from server.db.payments.idempotency_keys import Flights, end_flights
from server.db.roles import Role
from server.db.workers import STEP_SECONDS, beat, forget_workers, leave

BEAT_SECONDS = 1.0
END_SECONDS = 0.05
"""The shortest time between two writes of ended flights."""

ANSWER_SECONDS = 5.0
LEAVE_SECONDS = 2.0
FORGET_SECONDS = 3_600.0
WARN_SECONDS = 60.0
_log = structlog.get_logger()


@dataclass(slots=True)
class Heartbeat:
    """The job. `went_back` is called when the database's clock has gone back; `predecessor` is a worker known to be dead."""

    database_url: str
    worker_id: UUID
    clock: DatabaseClock
    workers: WorkerCount
    health: Health
    flights: Flights
    went_back: Callable[[], None]
    predecessor: UUID | None = None
    _warned_at: float = float("-inf")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Beat until canceled, then leave. Started after the first beat.

        Raises `ClockSkewed`, or `FlorinError` if the database cannot be reached, before the first beat only.
        """
        connection = await self._opened()
        try:
            if self.predecessor is not None:
                await leave(connection, self.predecessor)
            await forget_workers(connection, older_than_seconds=FORGET_SECONDS)
            await self._beat(connection)
            if self.health.failure is not None:
                raise self.health.failure
            task_status.started()
            beat_at = trio.current_time() + BEAT_SECONDS
            while True:
                await self.flights.wait(seconds=max(beat_at - trio.current_time(), 0.0))
                is_beat = trio.current_time() >= beat_at
                connection = await self._surely(connection, self._beat if is_beat else self._end_flights)
                if is_beat:
                    beat_at = trio.current_time() + BEAT_SECONDS
                else:
                    await trio.sleep(END_SECONDS)
        finally:
            with trio.move_on_after(LEAVE_SECONDS, shield=True):
                await self._leave(connection)
            connection.discard()

    async def _opened(self) -> Connection:
        return await Connection.open(self.database_url, application_name="florin heartbeat", role=Role.APP, writes=True)

    async def _surely(self, connection: Connection, work: Callable[[Connection], Awaitable[None]]) -> Connection:
        """Do it, on another connection if this one is lost. Returns the connection to go on with."""
        try:
            if self.health.is_doubted:
                self.health.is_doubted = False
                connection.discard()
            if connection.closed:
                connection = await self._opened()
            with trio.fail_after(ANSWER_SECONDS):
                await work(connection)
        except (FlorinError, psycopg.Error, trio.TooSlowError) as error:
            connection.discard()
            _log.warning("the heartbeat of this worker cannot be written", error=str(error).strip())
            await trio.sleep(BEAT_SECONDS)
        return connection

    async def _beat(self, connection: Connection) -> None:
        began_at, asked_at = trio.current_time(), self.clock.monotonic()
        beaten = await beat(connection, self.worker_id)
        measured = self.clock.adopt(beaten.database_now, asked_at=asked_at)
        self.workers.count, self.workers.rank = beaten.workers, beaten.rank
        self.workers.clock_seconds = beaten.database_now.timestamp() - trio.current_time()
        self.health.written_at = began_at
        if abs(measured.step_seconds) > STEP_SECONDS:
            _log.warning("the database's clock has jumped", seconds=round(measured.step_seconds, 1))
        try:
            measured.require_small()
        except ClockSkewed as error:
            self.health.fail(error)
            return
        if abs(measured.skew_seconds) > SKEW_SECONDS_WARN and began_at - self._warned_at > WARN_SECONDS:
            self._warned_at = began_at
            _log.warning(f"this machine's clock is {described(measured.skew_seconds)} the database's: check NTP")
        if beaten.went_back:
            self.went_back()

    async def _end_flights(self, connection: Connection) -> None:
        await end_flights(connection, self.flights)

    async def _leave(self, connection: Connection) -> None:
        try:
            await end_flights(connection, self.flights)
            await leave(connection, self.worker_id)
        except (DatabaseUnavailable, psycopg.Error):
            pass  # the others find out when the heartbeats are missing
