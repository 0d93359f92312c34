"""Notes alerts for dead letters, findings and overdue payments.

Every worker looks, about every half minute; the alert's key makes it one alert (`server.db.alerts`).
"""

from datetime import datetime, timedelta

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from core.ids import ENDPOINT, MERCHANT, encode_id
from server.db.alerts import Alert, note_alert
from server.db.connection import Connection
from server.db.overdue import (
    COUNT_MAX,
    DeadEndpoint,
    dead_deliveries,
    dead_psp_events,
    new_findings,
    old_findings,
    overdue_payments,
)
from server.db.payments.findings import close_told_findings
from server.db.webhooks.delivery_log import complete_kept
from server.flows.contexts import Storage
from server.flows.ledger import payouts

LOOK_SECONDS = 30.0
SINCE_SECONDS = 120.0
"""Each look goes back this far, so that a worker that was busy or replaced misses nothing."""

OVERDUE_SECONDS = 600.0
URGENT_DAYS = 3
_log = structlog.get_logger()


async def run(context: Storage, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Look until canceled."""
    task_status.started()
    while True:
        await trio.sleep(LOOK_SECONDS)
        try:
            await look(context)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("cannot look for dead letters, findings and overdue payments", error=str(error))


async def look(context: Storage) -> None:
    """Look once."""
    now = context.now()
    since = now - timedelta(seconds=SINCE_SECONDS)
    async with context.pool.connection() as connection:
        for one in await dead_deliveries(connection, since=since):
            await note_alert(connection, _of_dead(one), now=one.latest_at)
        count, latest_at = await dead_psp_events(connection, since=since)
        if latest_at is not None:
            title = f"{_counted(count)} events of PSPs could not be processed"
            alert = Alert(key="psp_dead_letters", kind="dead_letters", title=title, detail="`florin psp events list` shows them.")
            await note_alert(connection, alert, now=latest_at)
        for kind, count, latest_at in await new_findings(connection, since=since):
            title = f"{count} new findings: {kind}"
            detail = "The books and a PSP do not agree, and a person has to look: `florin finding list`."
            alert = Alert(key=f"findings:{kind}", kind="reconciliation", title=title, detail=detail)
            await note_alert(connection, alert, now=latest_at)
        await close_told_findings(connection)
        await payouts.expire(connection, now=now)
        await complete_kept(connection)
        for kind, count, oldest_at in await old_findings(connection, before=now - timedelta(days=1)):
            await note_alert(connection, _of_old(kind, count, (now - oldest_at).days), now=now)
        for alert in await _overdue(connection, now):
            await note_alert(connection, alert, now=now)


def _of_old(kind: str, count: int, days: int) -> Alert:
    """An alert that is raised again every day, the more urgently the older the finding is."""
    degree = "URGENT: " if days >= URGENT_DAYS else "again: "
    title = f"{degree}{count} findings are still open after {days} {'day' if days == 1 else 'days'}: {kind}"
    detail = "Take them, oldest first: `florin finding list`, then `florin finding show`, which says what can be done."
    return Alert(key=f"findings_open:{kind}:{days}", kind="reconciliation", title=title, detail=detail)


def _of_dead(one: DeadEndpoint) -> Alert:
    return Alert(
        merchant_id=one.merchant_id,
        key=f"dead_letters:{encode_id(ENDPOINT, one.endpoint_id)}",
        kind="dead_letters",
        title=f"{one.count} deliveries to {encode_id(ENDPOINT, one.endpoint_id)} became dead letters",
        detail=f"Merchant {encode_id(MERCHANT, one.merchant_id)}. `florin dlq list` shows them: retry them when it works.",
    )


async def _overdue(connection: Connection, now: datetime) -> list[Alert]:
    count = await overdue_payments(connection, due_before=now - timedelta(seconds=OVERDUE_SECONDS))
    if not count:
        return []
    title = f"{_counted(count)} payments were due more than {OVERDUE_SECONDS / 60:.0f} minutes ago and have not been followed up"
    detail = "They should have been expired, rechecked or released. Check that workers are running and that the PSPs answer."
    return [Alert(key="expiry_backlog", kind="expiry_backlog", title=title, detail=detail)]


def _counted(count: int) -> str:
    return f"{count:,}" if count < COUNT_MAX else f"{COUNT_MAX:,} or more"
