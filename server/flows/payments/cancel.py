"""Cancel an unpaid payment: close its page, or void its authorization. The PSP has the last word."""

import trio

from core.errors import Conflict, PspError, PspOutcomeUnknown
from core.evidence import EvidenceKind, Source
from core.idempotency import KeyedOperation
from core.ids import PaymentId, ResourceId
from core.payment import CLOSED, Payment, Status
from server.flows.contexts import Psps
from server.flows.idempotency import Claimed, EndedByFailure, Request, answer, claim, give_up
from server.flows.payments.capture import Done, OperationOutcome, void
from server.flows.payments.choose import reserve
from server.flows.payments.settle import Answering, encode_payment, settle
from server.flows.payments.verify import load, read


async def cancel(context: Psps, request: Request, payment_id: PaymentId) -> OperationOutcome:
    """Cancel a payment; a canceled one stays canceled. Raises `NotFound`, `PspBusy`, `Conflict` if the PSP holds the money."""
    payment = await load(context, request, payment_id)
    with context.turn(payment.merchant_id) as turn:
        if payment.status in (Status.PENDING, Status.AUTHORIZED):
            await reserve(context, request, payment, turn)
        claimed = await claim(context, request, ResourceId(payment.id), operation=KeyedOperation.CANCEL, turn=turn)
        if not isinstance(claimed, Claimed):
            return claimed
        async with EndedByFailure(context, request, in_flight_until=claimed.in_flight_until):
            return await _cancel(context, request, claimed, await read(context, request, payment_id))


async def _cancel(context: Psps, request: Request, claimed: Claimed, payment: Payment) -> OperationOutcome:
    match payment.status:
        case Status.CANCELED:
            await answer(context, request, encode_payment(payment))
            return Done(payment, replayed=claimed.resumed)
        case Status.AUTHORIZED:
            return await void(context, request, claimed, payment)
        case Status.PENDING:
            return await _close(context, request, claimed, payment)
        case Status.UNKNOWN:
            await give_up(context, request, claimed)
            failure = PspOutcomeUnknown("the payment is UNKNOWN and the PSP cannot be reached at the moment")
            return Done(payment, failure=failure, replayed=claimed.resumed)
        case Status.SUCCEEDED | Status.DECLINED | Status.EXPIRED:
            await give_up(context, request, claimed)
            advice = ": refund it" if payment.status is Status.SUCCEEDED else ""
            raise Conflict(f"a payment that is {payment.status} cannot be canceled{advice}", code="not_cancelable")


async def _close(context: Psps, request: Request, claimed: Claimed, payment: Payment) -> OperationOutcome:
    try:
        with trio.fail_after(context.psp_seconds):
            adapter = await context.psps.of(payment.psp_account_id)
            evidence = await adapter.close(payment, as_kind=EvidenceKind.CANCELED, source=Source.MERCHANT)
    except (PspError, trio.TooSlowError) as error:
        await give_up(context, request, claimed)
        failure = error if isinstance(error, PspError) else PspOutcomeUnknown("the PSP did not answer in time")
        return Done(payment, failure=failure, replayed=claimed.resumed)
    if evidence.kind is EvidenceKind.NOT_FOUND:
        await give_up(context, request, claimed)
        raise Conflict("this payment is being opened at the PSP: try again in a moment", code="being_opened")
    answering = Answering(request, lambda change: change.after.status in CLOSED)
    settled = await settle(context, payment.merchant_id, payment.id, evidence, known=payment, answering=answering)
    assert settled is not None
    if settled.payment.status in CLOSED:  # EXPIRED if the PSP reported our closing before it answered
        if not settled.is_answered:
            await answer(context, request, encode_payment(settled.payment))
        return Done(settled.payment, replayed=claimed.resumed)
    await give_up(context, request, claimed)
    raise Conflict(f"the customer paid first: the payment is {settled.payment.status}", code="not_cancelable")
