"""Applies a PSP's event to its payment: finds the transition, and whether the event is in order and new.

Applying a notice twice changes nothing. TOO_EARLY: its subject is not known yet.
"""

from functools import partial

import structlog
from msgspec.structs import replace

from core.evidence import DISPUTES, Evidence, EvidenceKind
from core.ids import MerchantId, PaymentId, PspAccountId
from core.ledger import dispute_transfer
from core.payment import CLOSED, is_provisionally_declined
from server.db.payments.change_row import PspEvent
from server.db.payments.findings import has_transfer
from server.db.payments.payments import find_payment
from server.db.psps.events import EventOutcome, record, was_seen
from server.flows.contexts import Psps
from server.flows.payments.capture import carry_out
from server.flows.payments.refund import adopt
from server.flows.payments.settle import settle, settle_refund
from server.flows.payments.verify import verify_again
from server.psp.adapter import Adapter, Notice

_log = structlog.get_logger()


async def resolve(adapter: Adapter, notice: Notice) -> Notice:
    """Add the payment to a notice that does not name it. Raises `PspError`."""
    return await adapter.resolve(notice) if notice.merchant_id is None and notice.reference is not None else notice


async def apply_notice(context: Psps, adapter: Adapter, notice: Notice) -> EventOutcome:
    """Apply a notice whose payment is known. Raises `PspError` if the PSP has to be asked and cannot be, `Conflict` for a refund
    that does not fit, `DatabaseUnavailable`, `Overloaded`.
    """
    if notice.merchant_id is None or notice.payment_id is None or not notice.evidence:
        if notice.merchant_id is not None and notice.payment_id is not None:
            await _remember(context, adapter.account_id, notice, EventOutcome.IGNORED)
        _log.debug("a PSP event is of no concern", psp=adapter.psp, type=notice.event_type, event_id=notice.event_id)
        return EventOutcome.IGNORED
    ids = notice.merchant_id, notice.payment_id
    if len(notice.evidence) > 1 or notice.evidence[0].refund_id is not None:
        return await _apply_refunds(context, adapter, notice, ids)
    evidence = notice.evidence[0]
    if evidence.kind in DISPUTES and not await _is_its_turn(context, ids, evidence):
        return EventOutcome.TOO_EARLY
    # Other evidence is idempotent by itself; a failed attempt is logged each time, so its event must be new.
    if evidence.kind is EvidenceKind.ATTEMPT_FAILED and await _was_seen(context, adapter.account_id, notice, ids):
        return EventOutcome.NOTHING_NEW
    settled = await settle(context, *ids, evidence, psp_event=PspEvent(notice.event_id, notice.event_type))
    if settled is None:
        return EventOutcome.TOO_EARLY
    if not settled.changed:
        await _remember(context, adapter.account_id, notice, EventOutcome.NOTHING_NEW)
        return EventOutcome.NOTHING_NEW
    if is_provisionally_declined(settled.payment):
        await verify_again(context, settled.payment)
    if settled.payment.pending is not None and settled.payment.status in CLOSED:
        await carry_out(context, settled.payment)  # money was authorized too late: release it
    return EventOutcome.APPLIED


async def _is_its_turn(context: Psps, ids: tuple[MerchantId, PaymentId], evidence: Evidence) -> bool:
    """Return whether the event that a dispute depends on has arrived: the charge, and for its end its opening."""
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, *ids)
        if payment is None or evidence.money is None or evidence.money.amount_minor <= 0:
            return True
        opening = dispute_transfer(payment, replace(evidence, kind=EvidenceKind.DISPUTED))
        is_opening = evidence.kind is EvidenceKind.DISPUTED
        return bool(payment.captured_minor) and (is_opening or await has_transfer(connection, payment.merchant_id, opening))


async def _apply_refunds(context: Psps, adapter: Adapter, notice: Notice, ids: tuple[MerchantId, PaymentId]) -> EventOutcome:
    """Apply each refund of an event by itself; the event is recorded when all are done."""
    outcome = EventOutcome.NOTHING_NEW
    for evidence in notice.evidence:
        assert evidence.refund_id is not None
        apply = partial(settle_refund, context, *ids, evidence.refund_id, evidence)
        settled = await apply()
        if settled is None:
            if not await adopt(context, adapter, *ids, evidence):
                return EventOutcome.TOO_EARLY
            settled = await apply()
        if settled is not None and settled.changed:
            outcome = EventOutcome.APPLIED
    await _remember(context, adapter.account_id, notice, outcome)
    return outcome


async def _was_seen(context: Psps, account_id: PspAccountId, notice: Notice, ids: tuple[MerchantId, PaymentId]) -> bool:
    async with context.pool.connection() as connection:
        return await was_seen(connection, *ids, account_id, event_id=notice.event_id)


async def _remember(context: Psps, account_id: PspAccountId, notice: Notice, outcome: EventOutcome) -> None:
    assert notice.merchant_id is not None
    assert notice.payment_id is not None
    async with context.pool.connection() as connection:
        await record(
            connection,
            notice.merchant_id,
            notice.payment_id,
            account_id,
            event_id=notice.event_id,
            event_type=notice.event_type,
            outcome=outcome,
            now=context.now(),
        )
