"""Asks once a second what is due, for all jobs, and whether settings have changed, for all caches.

A job that polls the table by itself costs two processes a wakeup and a query each time; most of the time there is nothing. If it
cannot be known what is due, every job looks for itself, and caches go by their own short time.
"""

from collections.abc import Callable

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.concurrency.single_flight_cache import Validity
from server.db.due import Due, find_due
from server.db.pool import Pool

LOOK_SECONDS_MAX = 1.0
TRUSTED_SECONDS = 2.0
"""The time for which caches are known to be current after the settings were looked at."""

_EVERYTHING = Due(
    payments=True,
    psp_events=True,
    deliveries=True,
    batches=True,
    open_items=True,
    breakers=True,
    operator_requests=True,
    settings=True,
    snapshot=None,
)
_log = structlog.get_logger()


class DueWork:
    """The last look at the tables. `validity` is that of the caches of settings."""

    def __init__(self, pool: Pool, *, sweep_seconds: float) -> None:
        self._pool = pool
        self._look_seconds = min(sweep_seconds, LOOK_SECONDS_MAX)
        self.now = _EVERYTHING
        self.validity = Validity()
        self.on_settings: Callable[[], None] = lambda: None
        """Called when settings have changed."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until canceled."""
        task_status.started()
        while True:
            await self._look()
            await trio.sleep(self._look_seconds)

    async def _look(self) -> None:
        began_at = trio.current_time()
        try:
            async with self._pool.connection() as connection:
                due = await find_due(connection, since=self.now.snapshot)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("it is not known what is due", error=str(error))
            due = _EVERYTHING
        if due.settings:
            self.validity.end()
            self.on_settings()
        self.now = due
        if due.snapshot is not None:
            self.validity.extend(until=began_at + TRUSTED_SECONDS)
