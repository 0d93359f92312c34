"""Looks at every payment that is due: expires it, rechecks it, completes it.

One column, `due_at`, says when: a PENDING payment when it expires, one whose PSP object we know nothing of soon after its
request must have died, an UNKNOWN one by the recheck schedule, a provisionally declined one at once. The PSP is always asked
before anything is decided, and asking never charges.
"""

import structlog
import trio

from core.errors import DatabaseUnavailable, FlorinError, Overloaded, PspError
from core.payment import Payment, Source, Status, is_provisionally_declined
from server.db.payments import claim_due_payments, merchants_with_due_payments
from server.flows.expire import expire
from server.flows.services import Services
from server.flows.verify import verify

CLAIM_MAX = 100
CONCURRENCY_MAX = 32
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
    free = trio.CapacityLimiter(CONCURRENCY_MAX)
    with trio.move_on_after(lease_seconds):
        async with trio.open_nursery() as nursery:
            for payment in claimed:
                nursery.start_soon(_follow_up, services, payment, free)
    return len(claimed)


async def _follow_up(services: Services, payment: Payment, free: trio.CapacityLimiter) -> None:
    async with free:
        try:
            if is_overdue(services, payment):
                await expire(services, payment)
            else:
                await verify(services, payment, source=Source.RECHECK)
        except PspError as error:
            _log.warning("a due payment could not be checked", payment=str(payment.id), error=str(error))
        except FlorinError as error:
            _log.error("a due payment could not be followed up", payment=str(payment.id), error=str(error))


def is_overdue(services: Services, payment: Payment) -> bool:
    """Whether the payment's time is over and it may be closed. UNKNOWN never expires; a decline is looked at first."""
    if payment.status is not Status.PENDING or is_provisionally_declined(payment):
        return False
    return payment.expires_at <= services.now()
