"""Retries parked PSP events, and reads from the PSPs' own lists what their webhooks may have missed.

Each account's list is read about every 20 seconds, by one worker: refunds and disputes always, because nothing else would find
them, and everything if the list was not read for longer, as after an outage of ours or of the PSP.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded, PspError
from core.ids import PSP_ACCOUNT, encode_id
from server.db.psps.events import known_events
from server.db.psps.inbox import InboxItem, claim_due_events, merchants_with_due_events
from server.db.psps.shared_state import claim_reading, end_reading
from server.flows.contexts import Psps
from server.flows.payments.psp_events import keep, keep_unreadable, put_back, receive, retry
from server.jobs.due_work import DueWork
from server.psp.adapter import Adapter, Notice

CLAIM_MAX = 16
TASKS_MAX = 64
LEASE_MARGIN_SECONDS = 30.0
READ_EVERY_SECONDS = 20.0
LOOK_SECONDS = 4.0
"""The interval at which a worker looks whether a list is to be read."""

OUTAGE_SECONDS = 60.0
"""If a list was not read for this long, everything in it is read."""

OVERLAP_SECONDS = 30.0
FIRST_READ_SECONDS = 3_600.0
WINDOW_SECONDS = 300.0
"""The part of a list that is read at once, so that a long outage is caught up step by step."""

READING_SECONDS = 120.0
_log = structlog.get_logger()


async def run(
    context: Psps, work: DueWork, *, sweep_seconds: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Sweep until canceled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(_read_lists, context, sweep_seconds=max(sweep_seconds, LOOK_SECONDS)))
        task_status.started()
        while True:
            found = 0
            if work.now.psp_events and len(nursery.child_tasks) <= TASKS_MAX - CLAIM_MAX:
                try:
                    found = await sweep(context, nursery)
                except (DatabaseUnavailable, Overloaded) as error:
                    _log.warning("cannot read the inbox", error=str(error))
            if found < CLAIM_MAX:
                await trio.sleep(sweep_seconds)


async def sweep(context: Psps, nursery: trio.Nursery) -> int:
    """Retry due events in the nursery, so that a slow PSP delays only its own. Returns their number."""
    items: list[InboxItem] = []
    lease_seconds = 3 * context.psp_seconds + LEASE_MARGIN_SECONDS
    async with context.pool.connection() as connection:
        for merchant_id in await merchants_with_due_events(connection, limit=CLAIM_MAX):
            left = CLAIM_MAX - len(items)
            items += await claim_due_events(connection, merchant_id, limit=left, lease_seconds=lease_seconds)
            if len(items) >= CLAIM_MAX:
                break
    for item in items:
        nursery.start_soon(_retry, context, item)
    return len(items)


async def _retry(context: Psps, item: InboxItem) -> None:
    try:
        with trio.move_on_after(3 * context.psp_seconds) as scope:
            await retry(context, item)
        if scope.cancelled_caught:
            await put_back(context, item)
    except Exception:  # noqa: BLE001 - one event must not end the job; its lease brings it back
        _log.exception("a parked event could not be retried", event_id=item.event_id)


async def _read_lists(context: Psps, *, sweep_seconds: float) -> None:
    while True:
        async with trio.open_nursery() as nursery:
            for adapter in context.psps.adapters:
                nursery.start_soon(_read_one, context, adapter)
        await trio.sleep(sweep_seconds)


async def _read_one(context: Psps, adapter: Adapter) -> None:
    try:
        await read_list(context, adapter)
    except (DatabaseUnavailable, Overloaded, PspError) as error:
        _log.warning("cannot read a PSP's list of events", account=encode_id(PSP_ACCOUNT, adapter.account_id), error=str(error))
    except Exception:  # noqa: BLE001 - one account must not end the job
        _log.exception("reading a PSP's list of events failed", account=encode_id(PSP_ACCOUNT, adapter.account_id))


async def read_list(context: Psps, adapter: Adapter) -> int:
    """Read what is new in an account's list, if it is time. Returns the number of events applied."""
    if not adapter.guard.is_healthy:
        return 0
    async with context.pool.connection() as connection:
        reading = await claim_reading(
            connection, adapter.account_id, every_seconds=READ_EVERY_SECONDS, lease_seconds=READING_SECONDS
        )
    if reading is None:
        return 0
    since = reading.read_until or reading.now - timedelta(seconds=FIRST_READ_SECONDS)
    only_rare = reading.now - since < timedelta(seconds=OUTAGE_SECONDS)
    applied = 0
    with trio.move_on_after(READING_SECONDS):
        while since < reading.now:
            until = min(since + timedelta(seconds=WINDOW_SECONDS), reading.now)
            overlap = timedelta(seconds=OVERLAP_SECONDS)
            notices = await adapter.list_events(since=since - overlap, until=until, only_rare=only_rare)
            applied += await _apply_new(context, adapter, notices)
            is_last = until == reading.now
            async with context.pool.connection() as connection:
                await end_reading(connection, adapter.account_id, until=until, is_last=is_last)
            since = until
    if applied:
        _log.info("events were read from a PSP's list", account=encode_id(PSP_ACCOUNT, adapter.account_id), events=applied)
    return applied


async def _apply_new(context: Psps, adapter: Adapter, notices: Sequence[Notice]) -> int:
    ids = [(one.merchant_id, one.payment_id, one.event_id) for one in notices if one.merchant_id and one.payment_id]
    async with context.pool.connection() as connection:
        known = await known_events(connection, adapter.account_id, ids)
    applied = 0
    for notice in notices:
        if notice.event_id in known:
            continue
        try:
            await (keep_unreadable(context, adapter, notice) if notice.problem else receive(context, adapter, notice))
        except (DatabaseUnavailable, Overloaded):
            raise  # nothing is known of it: the list is read again from here
        except PspError:
            await keep(context, adapter, notice)
        except Exception as error:  # noqa: BLE001 - counted in the inbox, and retried from there
            _log.warning("an event of a PSP's list could not be applied", event_id=notice.event_id, error=type(error).__name__)
        applied += 1
    return applied
