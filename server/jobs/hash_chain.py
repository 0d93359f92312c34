"""Extends the hash chains of merchants' ledgers, a few seconds behind the payments and off their path."""

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.db.ledger.hash_chain import extend_chains
from server.flows.contexts import Storage

MERCHANTS_MAX = 200
ENTRIES_MAX = 200
"""The most merchants, and entries of each, that are chained together."""

_log = structlog.get_logger()


async def run(context: Storage, *, sweep_seconds: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Sweep until canceled."""
    task_status.started()
    while True:
        try:
            chained = await sweep(context)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("cannot extend the hash chains", error=str(error))
            chained = 0
        if chained < min(MERCHANTS_MAX, ENTRIES_MAX):  # otherwise some merchant, or more of one, may be left
            await trio.sleep(sweep_seconds)


async def sweep(context: Storage) -> int:
    """Extend the chains that are behind. Returns the number of entries chained."""
    async with context.pool.connection() as connection:
        return await extend_chains(connection, now=context.now(), merchants=MERCHANTS_MAX, entries=ENTRIES_MAX)
