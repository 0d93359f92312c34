"""Deletes expired idempotency keys, inbox events and other old rows, a bounded number at a time.

Age goes by the database's clock. A key that is deleted too early lets its request charge again, so nothing is deleted for a day
after that clock has jumped, or has not been watched for an hour: in that time somebody can set it right.
"""

from datetime import timedelta

import structlog
import trio

from core.batch import RESUMABLE_DAYS
from core.errors import DatabaseUnavailable, Overloaded
from server.db.alerts import prune_alerts
from server.db.batches.batches import forget_items
from server.db.due import prune_settings_changes
from server.db.events.consumers import prune_tickets
from server.db.payments.idempotency_keys import prune_keys
from server.db.psps.inbox import prune_events
from server.db.webhooks.delivery_log import prune_attempts
from server.db.workers import clock_is_steady
from server.flows.contexts import Storage

PIECE = 1_000
ALERTS_KEPT_DAYS = 90
EVENTS_KEPT_DAYS = 30
SWEEP_SECONDS = 600.0
STEADY_SECONDS = 86_400.0
_log = structlog.get_logger()


async def run(context: Storage, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Sweep until canceled."""
    task_status.started()
    while True:
        try:
            forgotten = await sweep(context)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("cannot delete old rows", error=str(error))
            forgotten = 0
        if forgotten < PIECE:
            await trio.sleep(SWEEP_SECONDS)


async def sweep(context: Storage) -> int:
    """Delete up to a piece of each kind. Returns the largest number deleted."""
    async with context.pool.connection() as connection:
        if not await clock_is_steady(connection, seconds=STEADY_SECONDS):
            return 0
        keys = await prune_keys(connection, now=context.now(), limit=PIECE)
        long_ago = context.now() - timedelta(days=EVENTS_KEPT_DAYS)
        events = await prune_events(connection, ended_before=long_ago, limit=PIECE)
        attempts = await prune_attempts(connection, made_before=long_ago, limit=PIECE)
        await forget_items(connection, created_before=context.now() - timedelta(days=RESUMABLE_DAYS), limit=PIECE)
        await prune_alerts(connection, last_before=context.now() - timedelta(days=ALERTS_KEPT_DAYS), limit=PIECE)
        await prune_settings_changes(connection)
        return max(keys, events, attempts, await prune_tickets(connection, now=context.now(), limit=PIECE))
