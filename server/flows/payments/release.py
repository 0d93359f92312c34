"""Makes the money of a payment available to its merchant once its settlement delay is over."""

from core.evidence import EvidenceKind, Source
from core.payment import Payment, Status, evidence_about
from core.refund_transition import Balances
from core.transition import apply
from server.db.payments.balance_locked import change_under_lock
from server.db.payments.change_row import ChangeRow
from server.flows.contexts import Settlement
from server.flows.payments.settle import row_of


async def release(context: Settlement, payment: Payment) -> None:
    """Move the payment's money from the pending wallet to the available one, once.

    Refunds may have used some of the pending money; no more is moved than there is. Raises `DatabaseUnavailable`, `Overloaded`.
    """

    def decide(locked: Payment, balances: Balances) -> ChangeRow | None:
        if locked.release_at is None or locked.status is not Status.SUCCEEDED:
            return None
        evidence = evidence_about(locked, EvidenceKind.RELEASED, Source.POLICY)
        change = apply(locked, evidence, now=context.now())
        return row_of(change, pending_minor=balances.pending_minor) if change is not None else None

    async with context.pool.connection() as connection:
        await change_under_lock(connection, context.change_group, payment.merchant_id, payment.id, decide)
