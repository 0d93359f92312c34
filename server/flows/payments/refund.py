"""Refunds: in full, in part, several times.

The refund is committed and the wallet debited before the PSP is asked; its id is the PSP's idempotency key. Whatever the PSP
says, at once or days later, goes through the refund's transition function. The follow-up job finishes a refund whose request
died.
"""

from dataclasses import dataclass

import structlog
import trio

from core.errors import Conflict, PspError, PspOutcomeUnknown, PspRejected, PspUnreachable
from core.evidence import Evidence, EvidenceKind, Source
from core.idempotency import InFlight, KeyedOperation, Mismatch, Replay
from core.ids import MerchantId, PaymentId, RefundId, ResourceId
from core.payment import Change, Payment, Status, evidence_about
from core.refund import Refund, RefundStatus, made_at_the_psp
from core.refund_transition import REFUSED, Balances, next_refund_check_at, refund_made_at_psp, request_refund
from server.db.payments.balance_locked import change_under_lock
from server.db.payments.change_row import ChangeRow
from server.db.payments.payments import find_payment
from server.db.payments.refunds import find_refund, postpone_refund
from server.flows.contexts import Psps
from server.flows.idempotency import Claimed, EndedByFailure, Request, answer, claim, give_up
from server.flows.payments.choose import reserve
from server.flows.payments.settle import Answering, encode_refund, row_of, settle, settle_refund
from server.flows.payments.submit import key_lifetime
from server.flows.payments.verify import load
from server.psp.adapter import Adapter

_log = structlog.get_logger()


_STANDS = frozenset({EvidenceKind.REFUND_PENDING, EvidenceKind.REFUND_SUCCEEDED})


@dataclass(frozen=True, slots=True)
class Refunded:
    """The refund after the request; `failure` says why its outcome is not known yet, `is_answered` that the reply is stored."""

    refund: Refund
    failure: PspError | None = None
    replayed: bool = False
    is_answered: bool = False


RefundOutcome = Refunded | Replay | Mismatch | InFlight


async def refund(
    context: Psps, request: Request, payment_id: PaymentId, *, amount_minor: int | None, reason: str | None
) -> RefundOutcome:
    """Refund an amount, or all that is left. Raises `NotFound`, `PspBusy`, `Conflict`."""
    payment = await load(context, request, payment_id)
    if payment.status is not Status.SUCCEEDED:
        raise Conflict(f"a payment that is {payment.status} has no money to refund", code="not_refundable")
    with context.turn(payment.merchant_id) as turn:
        await reserve(context, request, payment, turn)
        made_id = ResourceId(request.id)
        claimed = await claim(
            context, request, ResourceId(payment_id), operation=KeyedOperation.REFUND, made_id=made_id, turn=turn
        )
        if not isinstance(claimed, Claimed):
            return claimed
        async with EndedByFailure(context, request, in_flight_until=claimed.in_flight_until):
            return await _refund(context, request, claimed, payment, amount_minor=amount_minor, reason=reason)


async def _refund(
    context: Psps, request: Request, claimed: Claimed, payment: Payment, *, amount_minor: int | None, reason: str | None
) -> RefundOutcome:
    assert claimed.made_id is not None
    accepted = await accept(
        context, payment, RefundId(claimed.made_id), amount_minor=amount_minor, reason=reason, source=Source.MERCHANT
    )
    if isinstance(accepted, Conflict):
        await give_up(context, request, claimed)
        raise accepted
    answering = Answering(request, _is_answer)
    carry_on = _finish if claimed.resumed else send
    sent = await carry_on(context, payment, accepted, answering=answering)
    if sent.failure is not None:
        await give_up(context, request, claimed)
    elif not sent.is_answered:
        await answer(context, request, encode_refund(sent.refund))
    return Refunded(sent.refund, failure=sent.failure, replayed=claimed.resumed)


def _is_answer(change: Change) -> bool:
    """Return whether the refund is the definitive reply: the PSP has accepted or refused it."""
    if change.refund is None or change.refund.status is RefundStatus.UNKNOWN:
        return False
    return change.refund.is_accepted or change.refund.status is RefundStatus.FAILED


async def accept(
    context: Psps, payment: Payment, refund_id: RefundId, *, amount_minor: int | None, reason: str | None, source: Source
) -> Refund | Conflict:
    """Commit a refund, once per id. Returns a `Conflict`, having written nothing, if the payment or the wallet does not hold
    enough.
    """

    def decide(locked: Payment, balances: Balances) -> ChangeRow:
        amount = amount_minor if amount_minor is not None else locked.refundable_minor
        change = request_refund(
            locked, refund_id, amount_minor=amount, reason=reason, balances=balances, source=source, now=context.now()
        )
        return row_of(change)

    async with context.pool.connection() as connection:
        try:
            written = await change_under_lock(
                connection, context.change_group, payment.merchant_id, payment.id, decide, unless_refund=refund_id
            )
        except Conflict as error:
            return error
        accepted = await find_refund(connection, payment.merchant_id, payment.id, refund_id) if written is None else None
    accepted = accepted or (written[0].change.refund if written is not None else None)
    assert accepted is not None
    return accepted


async def adopt(context: Psps, adapter: Adapter, merchant_id: MerchantId, payment_id: PaymentId, told: Evidence) -> bool:
    """Accept a refund that was made at the PSP, once. It has happened, so it is posted whatever the wallet holds.

    The PSP is asked for its current state, because the event may be older than a failure. Returns False if that is too early: the
    payment is unknown or not charged, or the refund should be one of ours. Raises `Conflict` for one that does not fit,
    `PspError`.
    """
    reference, refund_id = told.reference, told.refund_id
    assert refund_id is not None
    if reference is None or refund_id != made_at_the_psp(payment_id, reference):
        return False
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, merchant_id, payment_id)
    if payment is None or payment.status is not Status.SUCCEEDED:
        return False
    if told.money is None or not _is_of(payment, told):
        raise Conflict("a refund made at the PSP does not fit its payment", code="refund_mismatch")
    known = refund_made_at_psp(payment, reference, money=told.money, now=context.now())
    try:
        with trio.fail_after(context.psp_seconds):
            seen = await adapter.fetch_refund(payment, known, source=Source.RECHECK)
    except trio.TooSlowError as error:
        raise PspOutcomeUnknown("the PSP did not answer in time") from error
    if seen.kind is EvidenceKind.REFUND_FAILED:
        return True  # nothing has happened, or no longer
    if seen.kind not in _STANDS:
        return False
    if seen.money != told.money:
        raise Conflict("a refund made at the PSP is not what its event said", code="refund_mismatch")

    def decide(locked: Payment, balances: Balances) -> ChangeRow:
        change = request_refund(
            locked,
            refund_id,
            amount_minor=known.money.amount_minor,
            reason="made at the payment provider",
            balances=balances,
            source=Source.WEBHOOK,
            now=context.now(),
            reference=reference,
        )
        return row_of(change)

    async with context.pool.connection() as connection:
        await change_under_lock(connection, context.change_group, merchant_id, payment_id, decide, unless_refund=refund_id)
    return True


def _is_of(payment: Payment, evidence: Evidence) -> bool:
    is_same = evidence.psp_account_id == payment.psp_account_id and evidence.operation_id == payment.operation_id
    return is_same and evidence.money is not None and evidence.money.currency == payment.money.currency


async def send(context: Psps, payment: Payment, accepted: Refund, *, answering: Answering | None = None) -> Refunded:
    """Ask the PSP for a refund and apply the result. Repeating it changes nothing while the PSP remembers its key."""
    if context.now() - accepted.created_at > await key_lifetime(context, payment):
        return Refunded(accepted, failure=PspOutcomeUnknown("the refund is too old to be repeated"))
    failure: PspError | None = None
    try:
        with trio.fail_after(context.psp_seconds):
            adapter = await context.psps.of(payment.psp_account_id)
            evidence = await adapter.refund(payment, accepted)
    except PspUnreachable as error:
        return Refunded(accepted, failure=error)
    except PspRejected as error:
        _log.warning("the PSP refused a refund", refund=accepted.public_id, error=str(error))
        evidence = evidence_about(
            payment,
            EvidenceKind.REFUND_FAILED,
            Source.MERCHANT,
            money=accepted.money,
            code=REFUSED,
            refund_id=accepted.id,
        )
    except (PspOutcomeUnknown, trio.TooSlowError) as error:
        failure = error if isinstance(error, PspError) else PspOutcomeUnknown("the PSP did not answer in time")
        evidence = evidence_about(payment, EvidenceKind.REFUND_LOST, Source.MERCHANT, refund_id=accepted.id)
    settled = await settle_refund(context, payment.merchant_id, payment.id, accepted.id, evidence, answering=answering)
    assert settled is not None
    assert settled.refund is not None
    is_open = settled.refund.is_open
    return Refunded(settled.refund, failure=failure if is_open else None, is_answered=settled.is_answered)


async def _finish(context: Psps, payment: Payment, known: Refund, *, answering: Answering | None = None) -> Refunded:
    """Continue a refund that was begun before: fetch it, and repeat it only if the PSP does not know it."""
    if not known.is_open:
        return Refunded(known)
    try:
        with trio.fail_after(context.psp_seconds):
            adapter = await context.psps.of(known.psp_account_id)
            evidence = await adapter.fetch_refund(payment, known, source=Source.RECHECK)
    except (PspError, trio.TooSlowError) as error:
        return Refunded(known, failure=error if isinstance(error, PspError) else PspOutcomeUnknown("no answer in time"))
    if evidence.kind is EvidenceKind.REFUND_NOT_FOUND and not known.is_accepted:
        return await send(context, payment, known, answering=answering)
    settled = await settle_refund(context, payment.merchant_id, payment.id, known.id, evidence, answering=answering)
    assert settled is not None
    assert settled.refund is not None
    if not settled.changed:
        async with context.pool.connection() as connection:
            await postpone_refund(connection, known, due_at=next_refund_check_at(settled.refund, now=context.now()))
    return Refunded(settled.refund, is_answered=settled.is_answered)


async def finish_refund(context: Psps, due: Refund) -> None:
    """Follow up a due refund. Raises `PspError` if nothing was learned."""
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, due.merchant_id, due.payment_id)
    assert payment is not None
    finished = await _finish(context, payment, due)
    if finished.failure is not None:
        raise finished.failure


async def count_failed_fetch(context: Psps, due: Refund) -> None:
    """Count a fetch of a refund that brought nothing, so that fetching ends with a finding."""
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, due.merchant_id, due.payment_id)
    assert payment is not None
    evidence = evidence_about(payment, EvidenceKind.REFUND_NOT_FOUND, Source.RECHECK, refund_id=due.id)
    await settle_refund(context, due.merchant_id, due.payment_id, due.id, evidence)


async def give_back(context: Psps, payment: Payment) -> None:
    """Refund money that arrived after its payment had ended, once: the refund's id is derived from the payment.

    If the payment or the wallet does not hold enough, one finding is written instead.
    """
    accepted = await accept(
        context, payment, payment.late_refund_id, amount_minor=None, reason="paid too late", source=Source.POLICY
    )
    if isinstance(accepted, Conflict):
        refused = evidence_about(payment, EvidenceKind.LATE_REFUND_REFUSED, Source.POLICY)
        await settle(context, payment.merchant_id, payment.id, refused, known=payment, only_if_unchanged=True)
        return
    await _finish(context, payment, accepted)
