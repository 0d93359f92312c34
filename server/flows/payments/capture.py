"""Capture and void: operations on an authorized payment.

The operation is committed with the payment before the PSP is asked, so the follow-up job can finish a request that dies: it
fetches first and then repeats the same operation, with its id as the PSP's idempotency key.
"""

from dataclasses import dataclass, replace

import structlog
import trio

from core.errors import (
    Conflict,
    IllegalTransition,
    PspError,
    PspOutcomeUnknown,
    PspRejected,
    PspUnreachable,
    Unprocessable,
)
from core.evidence import Evidence, EvidenceKind, Source
from core.idempotency import InFlight, KeyedOperation, Mismatch, Replay
from core.ids import OperationId, PaymentId, ResourceId
from core.money import Money
from core.payment import OperationKind, Payment, PendingOperation, Status, evidence_about
from server.flows.contexts import Psps
from server.flows.idempotency import Claimed, EndedByFailure, Request, answer, claim, give_up
from server.flows.payments.choose import reserve
from server.flows.payments.settle import Answering, encode_payment, settle
from server.flows.payments.submit import key_lifetime
from server.flows.payments.verify import load, look, read

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Done:
    """The payment after the operation; `failure` says why the PSP did not carry it out.

    `is_answered`: the reply was stored with the change. It was not if a webhook was faster than the PSP's answer.
    """

    payment: Payment
    failure: PspError | None = None
    replayed: bool = False
    is_answered: bool = False


OperationOutcome = Done | Replay | Mismatch | InFlight


async def capture(context: Psps, request: Request, payment_id: PaymentId, amount_minor: int | None) -> OperationOutcome:
    """Capture authorized money, in full or in part, once; the PSP releases the rest.

    Raises `NotFound`, `PspBusy`, `Unprocessable` for an impossible amount, `Conflict` if there is nothing to capture.
    """
    payment = await load(context, request, payment_id)
    amount = amount_minor if amount_minor is not None else payment.money.amount_minor
    if not 0 < amount <= payment.money.amount_minor:
        raise Unprocessable(
            f"a capture amount must be between 1 and {payment.money.amount_minor}", code="invalid_amount", path="$.amount"
        )
    with context.turn(payment.merchant_id) as turn:
        if payment.status is Status.AUTHORIZED:
            await reserve(context, request, payment, turn)
        claimed = await claim(context, request, ResourceId(payment_id), operation=KeyedOperation.CAPTURE, turn=turn)
        if not isinstance(claimed, Claimed):
            return claimed
        async with EndedByFailure(context, request, in_flight_until=claimed.in_flight_until):
            payment = await read(context, request, payment_id)
            money = Money(amount, payment.money.currency)
            wanted = evidence_about(
                payment, EvidenceKind.CAPTURE_REQUESTED, Source.MERCHANT, requested_id=OperationId(request.id), money=money
            )
            return await _operate(context, request, claimed, payment, wanted)


async def void(context: Psps, request: Request, claimed: Claimed, payment: Payment) -> OperationOutcome:
    """Release authorized money. The caller has claimed the key. Raises `Conflict` if there is nothing to void."""
    wanted = evidence_about(payment, EvidenceKind.VOID_REQUESTED, Source.MERCHANT, requested_id=payment.void_id)
    return await _operate(context, request, claimed, payment, wanted)


async def _operate(context: Psps, request: Request, claimed: Claimed, payment: Payment, wanted: Evidence) -> OperationOutcome:
    capturing = wanted.kind is EvidenceKind.CAPTURE_REQUESTED
    if claimed.resumed and _is_done(payment, wanted):
        await answer(context, request, encode_payment(payment))
        return Done(payment, replayed=True)
    refusal: str | None = None
    if not (claimed.resumed and _is_under_way(payment, wanted)):
        try:
            settled = await settle(context, payment.merchant_id, payment.id, wanted, known=payment)
        except IllegalTransition as error:
            refusal = str(error)
        else:
            assert settled is not None
            payment = settled.payment
    answering = Answering(request, lambda change: _is_done(change.after, wanted))
    done = Done(payment) if refusal else await carry_out(context, payment, answering=answering)
    if done.failure is None and done.payment.pending is None and _is_done(done.payment, wanted):
        if not done.is_answered:
            await answer(context, request, encode_payment(done.payment))
        return replace(done, replayed=claimed.resumed)
    await give_up(context, request, claimed)
    if done.failure is not None:
        return replace(done, replayed=claimed.resumed)
    said = f"a payment that is {done.payment.status} cannot be {'captured' if capturing else 'voided'}"
    raise Conflict(f"{said}: {refusal}" if refusal else said, code="not_capturable" if capturing else "not_cancelable")


def _is_under_way(payment: Payment, wanted: Evidence) -> bool:
    """Return whether the payment's pending operation is the requested one."""
    if payment.pending is None:
        return False
    if wanted.money is None:
        return payment.pending.kind is OperationKind.VOID
    return payment.pending.kind is OperationKind.CAPTURE and payment.pending.amount_minor == wanted.money.amount_minor


def _is_done(payment: Payment, wanted: Evidence) -> bool:
    if wanted.money is None:
        return payment.status is Status.CANCELED
    return payment.status is Status.SUCCEEDED and payment.captured_minor == wanted.money.amount_minor


async def carry_out(context: Psps, payment: Payment, *, answering: Answering | None = None) -> Done:
    """Ask the PSP for the payment's pending operation and apply the result. Repeating it changes nothing.

    Raises `DatabaseUnavailable`, `Overloaded`.
    """
    operation = payment.pending
    if operation is None:
        return Done(payment)
    if context.now() - operation.since > await key_lifetime(context, payment):
        return Done(payment, failure=PspOutcomeUnknown("the operation is too old to be repeated"))
    failure: PspError | None = None
    try:
        with trio.fail_after(context.psp_seconds):
            evidence = await _ask(context, payment, operation)
    except PspUnreachable as error:
        return Done(payment, failure=error)
    except PspRejected as error:
        _log.warning("the PSP refused an operation", payment=payment.public_id, operation=operation.kind, error=str(error))
        failure, evidence = error, await _after_rejection(context, payment, operation)
    except (PspOutcomeUnknown, trio.TooSlowError) as error:
        failure = error if isinstance(error, PspError) else PspOutcomeUnknown("the PSP did not answer in time")
        evidence = evidence_about(payment, EvidenceKind.LOST, Source.MERCHANT)
    settled = await settle(
        context,
        payment.merchant_id,
        payment.id,
        evidence,
        known=payment,
        answering=answering,
    )
    assert settled is not None
    failed = settled.payment.status is payment.status
    return Done(settled.payment, failure=failure if failed else None, is_answered=settled.is_answered)


async def finish(context: Psps, payment: Payment) -> Payment:
    """Finish an operation whose request has died: fetch its state, and repeat it if the PSP has not done it.

    Past the PSP's key lifetime it is not repeated. Raises `PspError` if nothing was learned.
    """
    assert payment.pending is not None
    evidence = await look(context, payment, source=Source.RECHECK)
    settled = await settle(context, payment.merchant_id, payment.id, evidence, known=payment)
    assert settled is not None
    payment = settled.payment
    if payment.pending is None:
        return payment
    done = await carry_out(context, payment)
    if done.failure is not None:
        raise done.failure
    return done.payment


async def _ask(context: Psps, payment: Payment, operation: PendingOperation) -> Evidence:
    adapter = await context.psps.of(payment.psp_account_id)
    if operation.kind is OperationKind.CAPTURE:
        return await adapter.capture(payment, operation)
    return await adapter.void(payment, operation)


async def _after_rejection(context: Psps, payment: Payment, operation: PendingOperation) -> Evidence:
    """Handle a refused operation. An earlier try may have been carried out, so the PSP's own view comes first."""
    try:
        seen = await look(context, payment, source=Source.RECHECK)
    except PspError as error:
        _log.warning("a refused operation could not be checked", payment=payment.public_id, error=str(error))
        return evidence_about(payment, EvidenceKind.LOST, Source.MERCHANT)
    is_over = seen.kind in (EvidenceKind.CAPTURED, EvidenceKind.CANCELED, EvidenceKind.EXPIRED)
    return (
        seen
        if is_over
        else evidence_about(payment, EvidenceKind.REJECTED, Source.MERCHANT, requested_id=operation.id, code="refused_by_the_psp")
    )
