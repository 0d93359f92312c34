"""Follows up every due payment and refund: expires it, rechecks it, completes it, releases its money.

One column, `due_at`, says when: a PENDING payment when it expires and now and then before, in case a webhook was lost; one whose
opening has no recorded outcome, soon after its request must have died; an UNKNOWN one by the recheck schedule; a provisionally
declined one at once; an AUTHORIZED one a day before its end and at its end; a capture, void or refund whose request died; a
SUCCEEDED one when its money becomes available, or came too late and must be refunded. The PSP is always asked before anything is
decided, and asking never charges. A fetch that brings nothing counts, so the fetches end with a finding for an operator.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded, PspBusy, PspError
from core.evidence import EvidenceKind, Source
from core.fair_queue import Urgency
from core.payment import UNSETTLED, Payment, Status, evidence_about, is_provisionally_declined
from core.refund import Refund
from core.schedule import FIRST_LOOK_SECONDS, WARN_BEFORE_SECONDS, next_check_at, owes_late_refund
from server.db.payments.payments import claim_due_payments, merchants_with_due_payments, postpone
from server.db.payments.refunds import claim_due_refunds, merchants_with_due_refunds
from server.flows.contexts import Payments
from server.flows.payments.capture import finish
from server.flows.payments.expire import expire
from server.flows.payments.refund import count_failed_fetch, finish_refund, give_back
from server.flows.payments.release import release
from server.flows.payments.settle import settle
from server.flows.payments.submit import open_again
from server.flows.payments.verify import verify
from server.jobs.due_work import DueWork

CLAIM_MAX = 64
"""The number of payments, and of refunds, that are claimed together."""

TASKS_MAX = 512
"""The number that are followed up at the same time. One that a slow PSP holds up does not delay the others."""

LEASE_MARGIN_SECONDS = 20.0
_log = structlog.get_logger()


async def run(
    context: Payments, work: DueWork, *, sweep_seconds: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Sweep until canceled."""
    context = replace(context, urgency=Urgency.BACKGROUND)
    async with trio.open_nursery() as nursery:
        task_status.started()
        while True:
            found = 0
            if work.now.payments and len(nursery.child_tasks) <= TASKS_MAX - 2 * CLAIM_MAX:
                try:
                    found = await sweep(context, nursery)
                except (DatabaseUnavailable, Overloaded) as error:
                    _log.warning("cannot look for due payments", error=str(error))
            if found < CLAIM_MAX:
                await trio.sleep(sweep_seconds)


async def sweep(context: Payments, nursery: trio.Nursery) -> int:
    """Claim due payments and refunds and follow them up in the nursery. Returns the number claimed. Each ends within its
    lease.
    """
    work: list[Callable[[], Awaitable[None]]] = []
    lease_seconds = 2 * context.psp_seconds + LEASE_MARGIN_SECONDS
    async with context.pool.connection() as connection:
        for merchant_id in await merchants_with_due_payments(connection, limit=CLAIM_MAX):
            payments = await claim_due_payments(connection, merchant_id, limit=CLAIM_MAX - len(work), lease_seconds=lease_seconds)
            work += [partial(_follow_up, context, payment) for payment in payments]
            if len(work) >= CLAIM_MAX:
                break
        for merchant_id in await merchants_with_due_refunds(connection, limit=CLAIM_MAX):
            refunds = await claim_due_refunds(
                connection, merchant_id, limit=2 * CLAIM_MAX - len(work), lease_seconds=lease_seconds
            )
            work += [partial(_follow_up_refund, context, refund) for refund in refunds]
            if len(work) >= 2 * CLAIM_MAX:
                break
    for one in work:
        nursery.start_soon(_within, one, lease_seconds)
    return len(work)


async def _within(work: Callable[[], Awaitable[None]], seconds: float) -> None:
    with trio.move_on_after(seconds):
        await work()


async def _follow_up(context: Payments, payment: Payment) -> None:
    try:
        try:
            await _look(context, payment)
        except PspBusy:
            pass  # the PSP was not asked: the lease brings it back, and it does not count as a fetch
        except (PspError, trio.TooSlowError) as error:
            _log.warning("a due payment could not be checked", payment=payment.public_id, error=str(error))
            unanswered = evidence_about(payment, EvidenceKind.UNANSWERED, Source.RECHECK)
            await settle(context, payment.merchant_id, payment.id, unanswered, known=payment, only_if_unchanged=True)
    except Exception:  # noqa: BLE001 - one payment must not end the job; its lease brings it back
        _log.exception("a due payment could not be followed up", payment=payment.public_id)


async def _follow_up_refund(context: Payments, refund: Refund) -> None:
    try:
        try:
            await finish_refund(context, refund)
        except PspBusy:
            pass  # as above
        except (PspError, trio.TooSlowError) as error:
            _log.warning("a due refund could not be checked", refund=refund.public_id, error=str(error))
            await count_failed_fetch(context, refund)
    except Exception:  # noqa: BLE001 - one refund must not end the job; its lease brings it back
        _log.exception("a due refund could not be followed up", refund=refund.public_id)


async def _look(context: Payments, payment: Payment) -> None:
    now = context.now()
    if payment.pending is not None:
        await finish(context, payment)
    elif payment.status is Status.SUCCEEDED:
        await (give_back(context, payment) if owes_late_refund(payment) else release(context, payment))
    elif payment.status is Status.AUTHORIZED and _is_ending(context, payment):
        expiring = evidence_about(payment, EvidenceKind.EXPIRING, Source.RECHECK)
        await settle(context, payment.merchant_id, payment.id, expiring, known=payment, only_if_unchanged=True)
    elif _is_overdue(context, payment):
        await expire(context, payment)
    else:
        after = await verify(context, payment, source=Source.RECHECK)
        if after.status in UNSETTLED and after.reference is None and not after.is_sync:
            after = await open_again(context, after)
        if after.version == payment.version and after.due_at is not None:
            soon = now + timedelta(seconds=FIRST_LOOK_SECONDS)
            due_at = next_check_at(after, now=now) if after.status is Status.PENDING else soon
            async with context.pool.connection() as connection:
                await postpone(connection, after, due_at=due_at)


def _is_ending(context: Payments, payment: Payment) -> bool:
    """Return whether the merchant is to be warned, once, that the authorization will end."""
    if payment.is_warned or payment.capture_before is None:
        return False
    return payment.capture_before - timedelta(seconds=WARN_BEFORE_SECONDS) <= context.now()


def _is_overdue(context: Payments, payment: Payment) -> bool:
    """Return whether the payment's time is over and it may be closed. UNKNOWN never expires; a decline is fetched first."""
    if payment.status is not Status.PENDING or is_provisionally_declined(payment):
        return False
    return payment.expires_at <= context.now()
