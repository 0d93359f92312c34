"""Looks at every payment that is due: expires it, rechecks it, completes it.

One column, `due_at`, says when: a PENDING payment when it expires and now and then before, in case a webhook was lost; one whose
PSP object we know nothing of, soon after its request must have died; an UNKNOWN one by the recheck schedule; a provisionally
declined one at once. The PSP is always asked before anything is decided, and asking never charges. A look that brings nothing
counts, so that looking ends with a finding for a person.
"""

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded, PspError
from core.evidence import Evidence, EvidenceKind, Source
from core.payment import Payment, Status, is_provisionally_declined, next_look_at
from server.db.payments import claim_due_payments, merchants_with_due_payments, postpone
from server.flows.expire import expire
from server.flows.services import Services
from server.flows.settle import settle
from server.flows.verify import verify

CLAIM_MAX = 32
"""Looked at together, so that all of them end within their lease."""

LEASE_MARGIN_SECONDS = 20.0
_log = structlog.get_logger()


async def run(services: Services, *, sweep_seconds: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Sweep until cancelled."""
    task_status.started()
    while True:
        try:
            found = await sweep(services)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("cannot look for due payments", error=str(error))
            found = 0
        if not found:
            await trio.sleep(sweep_seconds)


async def sweep(services: Services) -> int:
    """Claim what is due and follow it up; how many payments were claimed."""
    claimed: list[Payment] = []
    lease_seconds = services.psp_seconds + LEASE_MARGIN_SECONDS
    async with services.db.pool.connection() as connection:
        for merchant_id in await merchants_with_due_payments(connection, limit=CLAIM_MAX):
            claimed += await claim_due_payments(
                connection, merchant_id, limit=CLAIM_MAX - len(claimed), lease_seconds=lease_seconds
            )
            if len(claimed) >= CLAIM_MAX:
                break
    with trio.move_on_after(lease_seconds):
        async with trio.open_nursery() as nursery:
            for payment in claimed:
                nursery.start_soon(_follow_up, services, payment)
    return len(claimed)


async def _follow_up(services: Services, payment: Payment) -> None:
    try:
        try:
            await _look(services, payment)
        except PspError as error:
            _log.warning("a due payment could not be checked", payment=str(payment.id), error=str(error))
            await settle(services, payment.merchant_id, payment.id, _unanswered(payment), known=payment, only_if_unchanged=True)
    except Exception:  # noqa: BLE001 - one payment must not end the job; its lease brings it back
        _log.exception("a due payment could not be followed up", payment=str(payment.id))


async def _look(services: Services, payment: Payment) -> None:
    if is_overdue(services, payment):
        await expire(services, payment)
        return
    after = await verify(services, payment, source=Source.RECHECK)
    if after.version == payment.version and after.status is Status.PENDING:
        async with services.db.pool.connection() as connection:
            await postpone(connection, after, due_at=next_look_at(after, now=services.now()))


def _unanswered(payment: Payment) -> Evidence:
    return Evidence(
        kind=EvidenceKind.UNANSWERED,
        source=Source.RECHECK,
        psp_account_id=payment.psp_account_id,
        operation_id=payment.operation_id,
    )


def is_overdue(services: Services, payment: Payment) -> bool:
    """Whether the payment's time is over and it may be closed. UNKNOWN never expires; a decline is looked at first."""
    if payment.status is not Status.PENDING or is_provisionally_declined(payment):
        return False
    return payment.expires_at <= services.now()
