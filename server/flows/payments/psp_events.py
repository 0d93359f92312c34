"""Receives PSP events, by webhook or from the PSP's list: verified before, applied once, recorded.

An event that comes too early (its payment, refund or dispute is not known yet) is parked in the inbox and retried from there, and
so is one whose processing failed. Five failures with the same error, or the end of the inbox's schedule, make it a dead letter
and a finding. `server.flows.payments.notices` decides what an event means for its payment.
"""

import hashlib
from datetime import timedelta

import msgspec
import structlog
from msgspec.structs import replace

from core.errors import DatabaseUnavailable, FlorinError, Malformed, Overloaded, PspError
from core.evidence import Finding
from core.retry import INBOX_DELAYS_SECONDS
from server.db.payments.findings import add_finding
from server.db.psps.events import EventOutcome
from server.db.psps.inbox import NOBODY, InboxItem, InboxState, end_event, give_back, note_failure, park
from server.flows.contexts import Psps
from server.flows.payments.notices import apply_notice, resolve
from server.psp.adapter import Adapter, Notice
from server.uuid7 import uuid7

ERROR_LENGTH_MAX = 300
ASK_AGAIN_SECONDS = 30.0
BUSY_PSP_MAX = timedelta(days=5)
"""The age up to which a parked event is put back, without counting an attempt, while its PSP or the database cannot be asked."""
_log = structlog.get_logger()


async def receive(context: Psps, adapter: Adapter, notice: Notice) -> EventOutcome:
    """Apply a verified notice. Returns after the commit; repeating it changes nothing.

    A TOO_EARLY event is parked and a DEAD one has failed often enough: the PSP need not send either again. Raises the failure if
    the PSP has to send it again; `PspError` if the PSP could not be asked about it, which does not count as a failure.
    """
    failure: Exception | None = None
    outcome = EventOutcome.DEAD
    try:
        notice = await resolve(adapter, notice)
        outcome = await apply_notice(context, adapter, notice)
    except (DatabaseUnavailable, Overloaded, PspError):
        raise
    except Exception as error:  # noqa: BLE001 - counted, and raised again below
        failure = error
    if failure is not None and await _failed(context, _item(context, adapter, notice, failure), notice) is InboxState.WAITING:
        raise failure
    if outcome is EventOutcome.TOO_EARLY:
        await keep(context, adapter, notice)
    context.metrics.psp_event(adapter.psp, outcome.value)
    return outcome


async def keep(context: Psps, adapter: Adapter, notice: Notice) -> None:
    """Park an event, to be retried from the inbox."""
    due_at = context.now() + timedelta(seconds=INBOX_DELAYS_SECONDS[0])
    async with context.pool.connection() as connection:
        await park(connection, _item(context, adapter, notice, None), due_at=due_at)


async def receive_unreadable(context: Psps, adapter: Adapter, body: bytes, error: Malformed) -> EventOutcome:
    """Handle a signed event that cannot be read: raise `Malformed` until it has failed often enough."""
    event_id = "sha256:" + hashlib.sha256(body).hexdigest()
    notice = Notice(event_id=event_id, event_type="unreadable", merchant_id=None, payment_id=None)
    item = replace(_item(context, adapter, notice, error), notice=None)
    if await _failed(context, item, notice) is InboxState.WAITING:
        raise error
    context.metrics.psp_event(adapter.psp, EventOutcome.DEAD.value)
    return EventOutcome.DEAD


async def keep_unreadable(context: Psps, adapter: Adapter, notice: Notice) -> None:
    """Park an unreadable event of a list, because the list will not be read again. Its retry makes it a dead letter."""
    _log.error("an event of a PSP's list cannot be read", event_id=notice.event_id, type=notice.event_type, error=notice.problem)
    item = replace(_item(context, adapter, notice, Malformed(notice.problem or "")), notice=None)
    async with context.pool.connection() as connection:
        await park(connection, item, due_at=context.now())


async def retry(context: Psps, item: InboxItem) -> None:
    """Retry a claimed event of the inbox."""
    error, outcome, notice = item.last_error, EventOutcome.DEAD, None
    try:
        if item.notice is not None:
            notice = msgspec.json.decode(item.notice, type=Notice)
            adapter = await context.psps.of(item.psp_account_id)
            notice = await resolve(adapter, notice)
            outcome = await apply_notice(context, adapter, notice)
            context.metrics.psp_event(adapter.psp, f"inbox_{outcome.value}")
    except (DatabaseUnavailable, Overloaded, PspError) as failure:
        if context.now() - item.received_at < BUSY_PSP_MAX:
            await put_back(context, item)
            return
        outcome, error = EventOutcome.TOO_EARLY, _text(failure)
    except Exception as failure:  # noqa: BLE001 - counted, and reported in the end
        outcome, error = EventOutcome.TOO_EARLY, _text(failure)
    is_over = item.attempts >= len(INBOX_DELAYS_SECONDS) or outcome is EventOutcome.DEAD
    async with context.pool.connection() as connection:
        if outcome not in (EventOutcome.TOO_EARLY, EventOutcome.DEAD):
            await end_event(connection, item, InboxState.DONE, due_at=None, error=error)
        elif not is_over:
            due_at = context.now() + timedelta(seconds=INBOX_DELAYS_SECONDS[item.attempts])
            await end_event(connection, item, InboxState.WAITING, due_at=due_at, error=error)
        elif await end_event(connection, item, InboxState.DEAD, due_at=None, error=error) and notice is not None:
            await _report(context, notice, error)


async def put_back(context: Psps, item: InboxItem) -> None:
    """Put back a claimed event: the PSP could not be asked, which is not an attempt."""
    async with context.pool.connection() as connection:
        await give_back(connection, item, due_at=context.now() + timedelta(seconds=ASK_AGAIN_SECONDS))


def _item(context: Psps, adapter: Adapter, notice: Notice, error: Exception | None) -> InboxItem:
    return InboxItem(
        merchant_id=notice.merchant_id or NOBODY,
        psp_account_id=adapter.account_id,
        event_id=notice.event_id,
        type=notice.event_type,
        notice=msgspec.json.encode(notice).decode(),
        state=InboxState.WAITING,
        attempts=0,
        last_error=_text(error) if error is not None else "its payment, refund or dispute is not known yet",
        received_at=context.now(),
    )


def _text(error: Exception) -> str:
    """The failure in short, without anything that an unexpected exception may quote."""
    said = f"{type(error).__name__}: {error}" if isinstance(error, FlorinError) else type(error).__name__
    return said.replace("\0", "")[:ERROR_LENGTH_MAX]


async def _failed(context: Psps, item: InboxItem, notice: Notice) -> InboxState:
    """Count a failure, and report a new dead letter."""
    _log.warning("a PSP event could not be applied", event_id=notice.event_id, type=notice.event_type, error=item.last_error)
    due_at = context.now() + timedelta(seconds=INBOX_DELAYS_SECONDS[-1])
    async with context.pool.connection() as connection:
        state, is_news = await note_failure(connection, item, due_at=due_at, now=context.now())
    if state is InboxState.DEAD and is_news:
        await _report(context, notice, item.last_error)
    return state


async def _report(context: Psps, notice: Notice, error: str) -> None:
    _log.error("a PSP event is a dead letter", event_id=notice.event_id, type=notice.event_type, error=error)
    if notice.merchant_id is None or notice.payment_id is None:
        return
    told = ", ".join(f"{one.kind} {one.money or ''} as {one.reference}" for one in notice.evidence)
    async with context.pool.connection() as connection:
        await add_finding(
            connection,
            notice.merchant_id,
            notice.payment_id,
            uuid7(),
            kind=Finding.UNMATCHED_EVENT,
            detail=f"event {notice.event_id}, {told}: {error}",
            now=context.now(),
        )
