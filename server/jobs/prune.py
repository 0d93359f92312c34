"""Forgets idempotency keys that are older than they are kept, a bounded piece at a time."""

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.db.keys import prune_keys
from server.flows.services import Services

PIECE = 1_000
SWEEP_SECONDS = 600.0
_log = structlog.get_logger()


async def run(services: Services, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Sweep until cancelled."""
    task_status.started()
    while True:
        try:
            forgotten = await sweep(services)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("cannot forget old idempotency keys", error=str(error))
            forgotten = 0
        if forgotten < PIECE:
            await trio.sleep(SWEEP_SECONDS)


async def sweep(services: Services) -> int:
    """Forget a piece; how many keys it was."""
    async with services.db.pool.connection() as connection:
        return await prune_keys(connection, now=services.now(), limit=PIECE)
