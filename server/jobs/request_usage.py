"""Shares with the other workers what this one has admitted of merchants that come near their rate, once a second.

While none does, nothing is written or read.
"""

from typing import cast
from uuid import UUID

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.concurrency.request_limits import RequestLimits
from server.concurrency.worker_count import WorkerCount
from server.db.merchants.usage import share_usage
from server.flows.contexts import Keys

SHARE_SECONDS = 1.0
_log = structlog.get_logger()


async def run(
    context: Keys, limits: RequestLimits, workers: WorkerCount, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Share until canceled."""
    task_status.started()
    was_near = False
    while True:
        await trio.sleep(SHARE_SECONDS)
        used = {cast("UUID", name): count for name, count in limits.take_counts().items()}
        if not used and not was_near:
            continue
        was_near = bool(used)
        try:
            async with context.pool.connection() as connection:
                elsewhere = await share_usage(connection, context.worker_id, used)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("the use of request limits cannot be shared", error=str(error))
            continue
        limits.share(elsewhere, workers=workers.count)
