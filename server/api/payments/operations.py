"""`POST /v1/payments/{id}/capture`, `/cancel` and `/refunds`: operations on an existing payment."""

from typing import Any

import msgspec

from core.errors import PspError
from core.idempotency import fingerprint
from core.ids import PAYMENT, REFUND, PaymentId, encode_id
from server import resources
from server.api.parsing import canonical, if_given, read_key, reply_within_seconds
from server.api.payments.bodies import read_cancel, read_capture, read_refund
from server.api.payments.handlers import decode_payment_id
from server.api.problems import retry_after_header, send_problem, status_of
from server.api.replies import CREATED, JSON, OK, location, replayed, send_decision
from server.api.routing import Call
from server.flows.contexts import Payments
from server.flows.idempotency import Request
from server.flows.payments.cancel import cancel
from server.flows.payments.capture import Done, capture
from server.flows.payments.refund import Refunded, refund
from server.flows.payments.settle import encode_payment, encode_refund
from server.http.asgi import Send, respond


class OperationsApi:
    """The handlers."""

    def __init__(self, context: Payments) -> None:
        self._context = context

    async def capture(self, call: Call, payment_text: str) -> None:
        """`POST /v1/payments/{id}/capture`."""
        payment_id, wanted = decode_payment_id(payment_text), read_capture(call.body)
        request = _request(call, payment_id, "capture", wanted, reply_status=OK)
        outcome = await capture(self._context, request, payment_id, if_given(wanted.amount))
        if isinstance(outcome, Done):
            await _send_done(call.send, outcome, request_id=call.request_id)
        else:
            await send_decision(call.send, outcome)

    async def cancel(self, call: Call, payment_text: str) -> None:
        """`POST /v1/payments/{id}/cancel`."""
        payment_id = decode_payment_id(payment_text)
        request = _request(call, payment_id, "cancel", read_cancel(call.body), reply_status=OK)
        outcome = await cancel(self._context, request, payment_id)
        if isinstance(outcome, Done):
            await _send_done(call.send, outcome, request_id=call.request_id)
        else:
            await send_decision(call.send, outcome)

    async def refund(self, call: Call, payment_text: str) -> None:
        """`POST /v1/payments/{id}/refunds`."""
        payment_id, wanted = decode_payment_id(payment_text), read_refund(call.body)
        request = _request(call, payment_id, "refunds", wanted, reply_status=CREATED)
        outcome = await refund(self._context, request, payment_id, amount_minor=if_given(wanted.amount), reason=wanted.reason)
        if isinstance(outcome, Refunded):
            await _send_refunded(call.send, outcome, request_id=call.request_id)
        else:
            await send_decision(call.send, outcome, at=refunds_path(payment_id))


def refunds_path(payment_id: PaymentId) -> str:
    """The path of a payment's refunds."""
    return f"/v1/payments/{encode_id(PAYMENT, payment_id)}/refunds"


def _request(call: Call, payment_id: PaymentId, verb: str, wanted: msgspec.Struct, *, reply_status: int) -> Request:
    key = read_key(call.scope)
    digest = fingerprint("POST", f"/v1/payments/{payment_id.hex}/{verb}", canonical(wanted))
    return Request(
        id=call.id,
        merchant_id=call.merchant.id,
        key=key,
        fingerprint=digest,
        reply_status=reply_status,
        wait_seconds=reply_within_seconds(call.scope) or 0.0,
    )


async def _send_done(send: Send, done: Done, *, request_id: str) -> None:
    headers = replayed(done.replayed)
    if done.failure is None:
        await respond(send, OK, encode_payment(done.payment), content_type=JSON, headers=headers)
        return
    now = f"the payment is {done.payment.status.value}"
    await _send_failure(send, done.failure, now, headers, request_id=request_id, payment=resources.Payment.of(done.payment))


async def _send_refunded(send: Send, refunded: Refunded, *, request_id: str) -> None:
    made = refunded.refund
    headers = [location(f"{refunds_path(made.payment_id)}/{encode_id(REFUND, made.id)}"), *replayed(refunded.replayed)]
    if refunded.failure is None:
        await respond(send, CREATED, encode_refund(refunded.refund), content_type=JSON, headers=headers)
        return
    now = f"the refund is accepted, {refunded.refund.status.value}, and will be followed up"
    await _send_failure(send, refunded.failure, now, headers, request_id=request_id, refund=resources.Refund.of(refunded.refund))


async def _send_failure(
    send: Send, failure: PspError, now: str, headers: list[tuple[bytes, bytes]], *, request_id: str, **thing: Any
) -> None:
    """Send why the PSP has not carried it out, and the current state."""
    await send_problem(
        send,
        status_of(failure),
        code=failure.code,
        detail=f"{_explained(failure)}; {now}",
        request_id=request_id,
        headers=[*headers, *retry_after_header(failure)],
        **thing,
    )


def _explained(failure: PspError) -> str:
    match failure.code:
        case "psp_timeout":
            return "the payment provider did not answer"
        case "psp_busy":
            return "the payment provider is overloaded or failing"
        case "psp_unreachable":
            return "the payment provider cannot be reached"
        case _:
            return "the payment provider refused"
