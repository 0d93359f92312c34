"""`/v1/payments`: create, read, list; a payment's logs and refunds."""

from typing import Any

import msgspec
import trio

from core.errors import InvalidId, NotFound, TokenUnknown, Unprocessable
from core.evidence import Source
from core.idempotency import fingerprint
from core.ids import PAYMENT, REFUND, PaymentId, RefundId, decode_id, encode_id
from core.payment import UNSETTLED, Payment, Status
from server import resources
from server.api.parsing import (
    canonical,
    decode_cursor,
    encode_cursor,
    read_key,
    read_limit,
    read_query,
    read_time,
    reply_within_seconds,
)
from server.api.payments.bodies import read_create
from server.api.problems import retry_after_header, send_problem
from server.api.replies import ACCEPTED, CREATED, JSON, location, replayed, send_decision
from server.api.routing import Call
from server.db.merchants.merchants import Merchant
from server.db.payments.log import list_logs
from server.db.payments.payments import Filter, find_payment, list_payments
from server.db.payments.refunds import find_refund, list_refunds
from server.flows.contexts import Payments, Storage
from server.flows.idempotency import Request
from server.flows.payments.create import Opened, create
from server.flows.payments.settle import encode_payment, encode_refund
from server.flows.payments.verify import verify, verify_if_possible
from server.http.asgi import respond

ACCESS_CHECK_SECONDS = 2.0
"""The time that a reader waits for the PSP's view of an open payment, and the interval of such fetches for one payment."""
ACCESS_CHECKS_MAX = 10_000
WAITERS_MAX = 1_000
POLL_SECONDS = 0.2
_FILTERS = ("status", "order_id", "created_from", "created_before", "cursor", "limit")


class PaymentsApi:
    """The handlers, and when each open payment was last fetched for a reader."""

    def __init__(self, context: Payments) -> None:
        self._context = context
        self._checked_at: dict[PaymentId, float] = {}
        self._waiters = 0

    async def create(self, call: Call) -> None:
        """`POST /v1/payments`."""
        merchant = call.merchant
        key = read_key(call.scope)
        decoded, wanted = read_create(call.body)
        wait = reply_within_seconds(call.scope)
        digest = fingerprint("POST", "/v1/payments", canonical(decoded))
        request = Request(
            id=call.id, merchant_id=merchant.id, key=key, fingerprint=digest, reply_status=CREATED, wait_seconds=wait or 0.0
        )
        outcome = await create(self._context, merchant, wanted, request, reply_within_seconds=wait)
        if isinstance(outcome, Opened):
            await _send_opened(call, outcome)
        else:
            await send_decision(call.send, outcome, at="/v1/payments")

    async def read(self, call: Call, payment_text: str) -> None:
        """`GET /v1/payments/{id}`. An open payment is fetched from the PSP first, so a reader may be ahead of the webhook.

        `Prefer: wait=N` waits until it is settled, or N seconds.
        """
        payment = await self._checked(await find_payment_of(self._context, call.merchant, payment_text))
        wait = reply_within_seconds(call.scope) or 0.0
        if wait and payment.status in UNSETTLED and self._waiters < WAITERS_MAX:
            self._waiters += 1
            try:
                payment = await self._wait(payment, seconds=wait)
            finally:
                self._waiters -= 1
        await respond(call.send, 200, encode_payment(payment), content_type=JSON)

    async def verify(self, call: Call, payment_text: str) -> None:
        """`POST /v1/payments/{id}/verify`: ask the PSP now. It only reads, so it needs no key."""
        payment = await verify(
            self._context, await find_payment_of(self._context, call.merchant, payment_text), source=Source.ACCESS
        )
        await respond(call.send, 200, encode_payment(payment), content_type=JSON)

    async def list(self, call: Call) -> None:
        """`GET /v1/payments`: newest first, in pages."""
        fields = read_query(call.scope, *_FILTERS)
        limit = read_limit(fields)
        status = fields.get("status")
        if status is not None and status not in set(Status):
            raise Unprocessable(f"status must be one of {', '.join(Status)}", code="invalid_query", path="status")
        wanted = Filter(
            status=Status(status) if status is not None else None,
            order_id=fields.get("order_id"),
            created_from=read_time(fields, "created_from"),
            created_before=read_time(fields, "created_before"),
        )
        after = decode_cursor(fields["cursor"]) if "cursor" in fields else None
        async with self._context.pool.connection() as connection:
            payments, following = await list_payments(connection, call.merchant.id, wanted, after=after, limit=limit)
        page = {
            "data": [resources.Payment.of(payment) for payment in payments],
            "has_more": following is not None,
            "next_cursor": encode_cursor(following) if following is not None else None,
        }
        await respond(call.send, 200, msgspec.json.encode(page), content_type=JSON)

    async def logs(self, call: Call, payment_text: str) -> None:
        """`GET /v1/payments/{id}/logs`: every change, oldest first."""
        payment = await find_payment_of(self._context, call.merchant, payment_text)
        async with self._context.pool.connection() as connection:
            logs = await list_logs(connection, payment.merchant_id, payment.id)
        await respond(call.send, 200, msgspec.json.encode({"data": logs}), content_type=JSON)

    async def refunds(self, call: Call, payment_text: str) -> None:
        """`GET /v1/payments/{id}/refunds`, oldest first."""
        payment = await find_payment_of(self._context, call.merchant, payment_text)
        async with self._context.pool.connection() as connection:
            refunds = await list_refunds(connection, payment.merchant_id, payment.id)
        body = msgspec.json.encode({"data": [resources.Refund.of(refund) for refund in refunds]})
        await respond(call.send, 200, body, content_type=JSON)

    async def refund(self, call: Call, payment_text: str, refund_text: str) -> None:
        """`GET /v1/payments/{id}/refunds/{refund_id}`."""
        payment_id, refund_id = decode_payment_id(payment_text), _decode_refund_id(refund_text)
        async with self._context.pool.connection() as connection:
            refund = await find_refund(connection, call.merchant.id, payment_id, refund_id)
        if refund is None:
            raise NotFound("no such refund")
        await respond(call.send, 200, encode_refund(refund), content_type=JSON)

    async def _checked(self, payment: Payment) -> Payment:
        if not self._is_worth_a_check(payment):
            return payment
        return await verify_if_possible(self._context, payment, source=Source.ACCESS, seconds=ACCESS_CHECK_SECONDS)

    async def _wait(self, payment: Payment, *, seconds: float) -> Payment:
        """Read the payment again and again: another worker may be the one that settles it."""
        with trio.move_on_after(seconds):
            while payment.status in UNSETTLED:
                await trio.sleep(POLL_SECONDS)
                async with self._context.pool.connection() as connection:
                    payment = await find_payment(connection, payment.merchant_id, payment.id) or payment
                payment = await self._checked(payment)
        return payment

    def _is_worth_a_check(self, payment: Payment) -> bool:
        if payment.status not in UNSETTLED or (payment.payment_url is None and not payment.is_sync):
            return False
        now = trio.current_time()
        if now - self._checked_at.get(payment.id, float("-inf")) < ACCESS_CHECK_SECONDS:
            return False
        if len(self._checked_at) >= ACCESS_CHECKS_MAX:
            self._checked_at.clear()
        self._checked_at[payment.id] = now
        return True


async def find_payment_of(context: Storage, merchant: Merchant, payment_text: str) -> Payment:
    """The merchant's payment that a path names. Raises `NotFound`."""
    payment_id = decode_payment_id(payment_text)
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, merchant.id, payment_id)
    if payment is None:
        raise NotFound("no such payment")
    return payment


def decode_payment_id(text: str) -> PaymentId:
    """The payment id of a path. Raises `NotFound`."""
    try:
        return PaymentId(decode_id(PAYMENT, text))
    except InvalidId as error:
        raise NotFound("no such payment") from error


def _decode_refund_id(text: str) -> RefundId:
    try:
        return RefundId(decode_id(REFUND, text))
    except InvalidId as error:
        raise NotFound("no such refund") from error


async def _send_opened(call: Call, opened: Opened) -> None:
    """Send the reply to a create. The outcome at the PSP decides its status."""
    send, payment = call.send, opened.payment
    headers = [location(f"/v1/payments/{encode_id(PAYMENT, payment.id)}"), *replayed(opened.replayed)]

    async def fail(status: int, **said: Any) -> None:
        payment_now = resources.Payment.of(payment)
        await send_problem(send, status, request_id=call.request_id, headers=headers, payment=payment_now, **said)

    if opened.busy is not None and payment.status is Status.PENDING:
        headers += retry_after_header(opened.busy)
        detail = "the payment provider takes no calls at the moment; the payment waits: repeat the request with the same key"
        await fail(503, code="psp_busy", detail=detail)
        return
    match payment.status, payment.decline_code:
        case ((Status.PENDING | Status.UNKNOWN), _) if opened.is_waiting:
            await respond(send, ACCEPTED, encode_payment(payment), content_type=JSON, headers=headers)
        case Status.UNKNOWN, _:
            detail = "the payment provider did not answer; the payment is UNKNOWN until it is settled: read it again later"
            await fail(504, code="psp_timeout", detail=detail)
        case Status.CANCELED, "psp_unreachable":
            detail = "the payment provider could not be reached and received nothing; it is canceled: use a new key"
            await fail(502, code="psp_unreachable", detail=detail)
        case Status.CANCELED, "psp_rejected":
            detail = "the payment provider refused to open this payment; it is canceled"
            await fail(502, code="psp_rejected", detail=detail)
        case Status.CANCELED, TokenUnknown.code:
            detail = (
                "the payment provider does not know this token: it may be mistyped, used up, or issued to another account; "
                "nothing was charged, and the payment is canceled: get a new token from the customer and use a new key"
            )
            await fail(422, code=TokenUnknown.code, detail=detail)
        case Status.CANCELED, "fraud_denied":
            await fail(402, code="declined", detail="the payment was refused by the fraud check", decline_code="fraud_denied")
        case Status.CANCELED, "fraud_check_unavailable":
            detail = (
                "the fraud check does not answer and the amount is above the limit; nothing was charged: try again with a new key"
            )
            await fail(503, code="fraud_check_unavailable", detail=detail, retry_after_seconds=5)
        case Status.DECLINED, code if payment.is_sync:
            await fail(402, code="declined", detail=f"the payment was declined: {code}", decline_code=code)
        case Status.PENDING, _ if payment.is_sync:
            await respond(send, ACCEPTED, encode_payment(payment), content_type=JSON, headers=headers)
        case Status.PENDING, _ if payment.payment_url is None:
            detail = "the payment provider or the fraud check cannot be reached yet: repeat the request with the same key"
            await fail(502, code="psp_unreachable", detail=detail)
        case _:
            body = opened.reply.body if opened.reply is not None else encode_payment(payment)
            await respond(send, CREATED, body, content_type=JSON, headers=headers)
