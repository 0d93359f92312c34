"""Sends alerts: all due ones in one message, and at most one message every `PAUSE_SECONDS`.

A worker claims an alert for a while. An alert that could not be sent is retried at growing intervals; in the end only the log has
it.
"""

from datetime import timedelta

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.db.alerts import claim_due_alerts, count_due_alerts, end_alert
from server.flows.alerts import AlertNotSent, Channels
from server.flows.contexts import Storage

LOOK_SECONDS = 5.0
PAUSE_SECONDS = 10.0
TOGETHER_MAX = 20
LEASE_SECONDS = 60.0
RETRY_DELAYS_SECONDS = (10, 30, 120, 600, 1_800, 3_600, 3_600, 3_600)
_log = structlog.get_logger()


async def run(context: Storage, channels: Channels, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Send alerts until canceled."""
    task_status.started()
    sent = 0
    while True:
        await trio.sleep(PAUSE_SECONDS if sent else LOOK_SECONDS)
        try:
            sent = await send_due(context, channels)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("cannot look for alerts", error=str(error))


async def send_due(context: Storage, channels: Channels) -> int:
    """Send the alerts that are due now. Returns their number."""
    now = context.now()
    async with context.pool.connection() as connection:
        found = await claim_due_alerts(connection, limit=TOGETHER_MAX, lease_seconds=LEASE_SECONDS, now=now)
        more = await count_due_alerts(connection, now=now) if len(found) == TOGETHER_MAX else 0
    if not found:
        return 0
    error: str | None = None
    try:
        await channels.send(found, more=more)
    except AlertNotSent as failure:
        error = str(failure)
    async with context.pool.connection() as connection:
        for noted in found:
            attempt = noted.attempts - 1
            is_last = attempt >= len(RETRY_DELAYS_SECONDS)
            due_at = now + timedelta(seconds=RETRY_DELAYS_SECONDS[attempt]) if error is not None and not is_last else None
            await end_alert(connection, noted, sent_at=now if error is None else None, due_at=due_at, error=error)
    return len(found)
