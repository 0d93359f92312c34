"""Sets right what is stored for a time that lies too far ahead, because the database's clock stood ahead and has gone back.

It looks when the heartbeat tells that the clock has gone back, at the start, and once an hour (`server.db.clock_bounds`).
"""

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.concurrency.wakeup import Wakeup
from server.db.clock_bounds import ROWS_MAX, set_right
from server.flows.contexts import Storage

SWEEP_SECONDS = 3_600.0
AGAIN_SECONDS = 1.0
_log = structlog.get_logger()


async def run(context: Storage, went_back: Wakeup, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Sweep until canceled, whenever the clock has gone back; again soon if that failed or left something."""
    task_status.started()
    while True:
        try:
            is_complete = await sweep(context)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("cannot look for times that lie too far ahead", error=str(error))
            is_complete = False
        await went_back.wait(seconds=SWEEP_SECONDS if is_complete else AGAIN_SECONDS)


async def sweep(context: Storage) -> bool:
    """Set right what lies too far ahead. Returns whether that was all of it."""
    async with context.pool.connection() as connection:
        done = await set_right(connection)
    for where, rows in done:
        _log.warning("what lay too far ahead was set right", where=where, rows=rows)
    return all(rows < ROWS_MAX for _, rows in done)
