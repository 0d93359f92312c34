"""Receive a webhook of a PSP: verified, applied once, remembered."""

from dataclasses import replace

from core.errors import Overloaded
from core.evidence import DISPUTES, Evidence, EvidenceKind, Finding, Source
from core.ids import PspAccountId
from core.ledger import dispute_transfer
from core.payment import CLOSED, is_provisionally_declined
from server.db.change_batch import PspEvent
from server.db.findings import add_finding, has_transfer
from server.db.payments import find_payment
from server.db.psp_events import Outcome, record, was_seen
from server.flows.operate import carry_out
from server.flows.services import Services
from server.flows.settle import settle, settle_refund
from server.flows.verify import verify_if_possible
from server.new_ids import uuid7
from server.psp.adapter import Notice


async def receive(services: Services, account_id: PspAccountId, notice: Notice) -> Outcome:
    """Apply a verified notice. Returns after the commit; repeating it changes nothing.

    Raises `DatabaseUnavailable` or `Overloaded`: the PSP has to send it again.
    """
    if not notice.evidence:
        await _remember(services, account_id, notice, Outcome.IGNORED)
        return Outcome.IGNORED
    if len(notice.evidence) > 1 or notice.evidence[0].refund_id is not None:
        return await _receive_refunds(services, account_id, notice)
    evidence = notice.evidence[0]
    if evidence.kind in DISPUTES:
        await _require_its_turn(services, notice, evidence)
    # Other evidence is idempotent by itself; a refused attempt is logged each time, so its event must be new.
    if evidence.kind is EvidenceKind.ATTEMPT_FAILED and await _was_seen(services, account_id, notice):
        return Outcome.NOTHING_NEW
    settled = await settle(
        services,
        notice.merchant_id,
        notice.payment_id,
        evidence,
        psp_event=PspEvent(notice.event_id, notice.event_type),
    )
    if settled is None:
        await _report_unmatched(services, notice, evidence)
        await _remember(services, account_id, notice, Outcome.UNMATCHED)
        return Outcome.UNMATCHED
    if not settled.changed:
        await _remember(services, account_id, notice, Outcome.NOTHING_NEW)
        return Outcome.NOTHING_NEW
    if is_provisionally_declined(settled.payment):
        await verify_if_possible(services, settled.payment, source=Source.RECHECK, seconds=services.psp_seconds)
    if settled.payment.pending is not None and settled.payment.status in CLOSED:
        await carry_out(services, settled.payment)  # money was authorized too late: it is released
    return Outcome.APPLIED


async def _require_its_turn(services: Services, notice: Notice, evidence: Evidence) -> None:
    """A dispute that is told before the charge, or its end before its opening, has to be told again. Raises `Overloaded`."""
    async with services.db.pool.connection() as connection:
        payment = await find_payment(connection, notice.merchant_id, notice.payment_id)
        if payment is None or evidence.money is None or evidence.money.amount_minor <= 0:
            return
        opening = dispute_transfer(payment, replace(evidence, kind=EvidenceKind.DISPUTED))
        is_opening = evidence.kind is EvidenceKind.DISPUTED
        if not payment.captured_minor or (not is_opening and not await has_transfer(connection, payment.merchant_id, opening)):
            raise Overloaded("what this dispute is about has not been told yet: tell it again")


async def _receive_refunds(services: Services, account_id: PspAccountId, notice: Notice) -> Outcome:
    """Refunds come several in one event; each is applied by itself, and the event is remembered when all are."""
    outcome = Outcome.NOTHING_NEW
    for evidence in notice.evidence:
        assert evidence.refund_id is not None
        settled = await settle_refund(services, notice.merchant_id, notice.payment_id, evidence.refund_id, evidence)
        if settled is None:
            await _report_unmatched(services, notice, evidence)
            outcome = Outcome.UNMATCHED
        elif settled.changed and outcome is Outcome.NOTHING_NEW:
            outcome = Outcome.APPLIED
    await _remember(services, account_id, notice, outcome)
    return outcome


async def _was_seen(services: Services, account_id: PspAccountId, notice: Notice) -> bool:
    async with services.db.pool.connection() as connection:
        return await was_seen(connection, notice.merchant_id, notice.payment_id, account_id, event_id=notice.event_id)


async def _report_unmatched(services: Services, notice: Notice, evidence: Evidence) -> None:
    """Money for a payment that we do not have is for a person to look at: the PSP will not tell again."""
    if evidence.money is None or await _was_seen(services, evidence.psp_account_id, notice):
        return
    detail = f"{evidence.kind} {evidence.money} as {evidence.reference}, of something that is not here"
    async with services.db.pool.connection() as connection:
        await add_finding(
            connection,
            notice.merchant_id,
            notice.payment_id,
            uuid7(),
            kind=Finding.UNMATCHED_EVENT,
            detail=detail,
            now=services.now(),
        )


async def _remember(services: Services, account_id: PspAccountId, notice: Notice, outcome: Outcome) -> None:
    async with services.db.pool.connection() as connection:
        await record(
            connection,
            notice.merchant_id,
            notice.payment_id,
            account_id,
            event_id=notice.event_id,
            event_type=notice.event_type,
            outcome=outcome,
            now=services.now(),
        )
