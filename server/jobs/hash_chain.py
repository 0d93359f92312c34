"""Extends the hash chains of merchants' ledgers, a few seconds behind the payments and off their path."""

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.db.ledger.hash_chain import extend, merchants_behind
from server.flows.contexts import Storage

MERCHANTS_MAX = 100
ENTRIES_MAX = 5_000
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
        if chained < ENTRIES_MAX:
            await trio.sleep(sweep_seconds)


async def sweep(context: Storage) -> int:
    """Extend the chains that are behind. Returns the number of entries chained."""
    chained = 0
    async with context.pool.connection() as connection:
        behind = await merchants_behind(connection, limit=MERCHANTS_MAX)
    for merchant_id in behind:
        async with context.pool.connection() as connection:
            chained += await extend(connection, merchant_id, now=context.now(), limit=ENTRIES_MAX)
    return chained
