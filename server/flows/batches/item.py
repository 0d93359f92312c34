"""Carries out one item of a batch under its own idempotency key.

Whatever happened before, in an earlier run or a worker that died, is found by the key and not repeated. An item that the deadline
cuts off leaves a payment that may have been charged: it is UNKNOWN, never declined, and the follow-up job checks it again.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

import trio

from core.batch import (
    ATTEMPTS_MAX,
    BatchId,
    ItemResult,
    ItemStatus,
    ItemType,
    is_under_way,
    item_key,
    status_of_payment,
    status_of_refund,
    was_never_received,
)
from core.errors import (
    Conflict,
    DatabaseUnavailable,
    IllegalTransition,
    InvalidMoney,
    NotFound,
    Overloaded,
    PspBusy,
    PspError,
    PspRejected,
    RequestError,
)
from core.evidence import Source
from core.idempotency import InFlight, Mismatch, Replay, fingerprint
from core.ids import MerchantId, PaymentId, RefundId
from core.payment import Payment, Status
from core.refund import Refund, RefundStatus
from server.db.merchants.merchants import Merchant
from server.db.payments.idempotency_keys import find_key
from server.db.payments.payments import find_payment
from server.db.payments.refunds import find_refund
from server.flows.contexts import Payments
from server.flows.idempotency import Request
from server.flows.payments.capture import Done, capture
from server.flows.payments.choose import NewPayment
from server.flows.payments.create import Opened, create
from server.flows.payments.refund import Refunded, refund
from server.flows.payments.verify import verify_if_possible, verify_or_wait
from server.uuid7 import uuid7

BUSY_SECONDS, BUSY_SECONDS_MAX = 0.5, 8.0
IN_FLIGHT_SECONDS = 0.5
LOOKS_SECONDS = (0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0)
DETAIL_LENGTH_MAX = 1_000
LATER = "its end is reported by the payment's event, and by this item"
_WAITS = (Overloaded, DatabaseUnavailable, PspBusy)
"""Errors after which nothing was sent and nothing is wrong with the item: it waits while its batch has time."""

ItemOutcome = Done | Refunded | Replay | Mismatch | InFlight


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item: a `charge`, or an operation on the payment `payment_id`. Without an amount the operation concerns all of it."""

    type: ItemType
    charge: NewPayment | None = None
    payment_id: PaymentId | None = None
    amount_minor: int | None = None
    reason: str | None = None

    @property
    def reference(self) -> str | None:
        """The merchant's name for it."""
        return self.charge.order_id if self.charge is not None else None


@dataclass(frozen=True, slots=True)
class Place:
    """The merchant, batch and number of an item. `merchant` gives the merchant's current row.

    `is_over`: nothing new may begin, so an item with nothing under way is given up.
    """

    merchant: Callable[[], Merchant]
    batch_id: BatchId
    number: int
    is_over: Callable[[], bool]

    @property
    def merchant_id(self) -> MerchantId:
        """The merchant's id."""
        return self.merchant().id

    def request(self, item: Item, *, attempt: int = 1) -> Request:
        """The request as which it is carried out."""
        key = item_key(self.batch_id, self.number, attempt=attempt)
        return Request(
            id=uuid7(),
            merchant_id=self.merchant_id,
            key=key,
            fingerprint=fingerprint("BATCH", item.type.value, key.encode()),
            reply_status=200 if item.type is ItemType.CAPTURE else 201,  # like the API's, although it is not sent to anybody
        )


class _GivenUp(Exception):
    """Nothing is under way, and nothing new may begin."""


async def carry_out(context: Payments, place: Place, item: Item) -> ItemResult | None:
    """Carry out an item, or find out what was done before. Waits while nothing can be sent; raises only unexpected errors.

    If it is canceled, or returns None because it was given up, the item may have been carried out: `leave` decides its result.
    """
    bare = ItemResult(
        number=place.number, type=item.type, status=ItemStatus.FAILED, reference=item.reference, payment_id=item.payment_id
    )
    try:
        match item.type:
            case ItemType.CHARGE:
                return of_payment(bare, await _charge(context, place, item))
            case ItemType.VERIFY:
                return await _verify(context, place, item, bare)
            case ItemType.CAPTURE:
                return await _capture(context, place, item, bare)
            case ItemType.REFUND:
                return await _refund(context, place, item, bare)
    except _GivenUp:
        return None
    except (RequestError, InvalidMoney, IllegalTransition) as error:
        return replace(bare, code=error.code, detail=str(error)[:DETAIL_LENGTH_MAX])


def cut_off(place: Place, item: Item, *, code: str, detail: str) -> ItemResult:
    """The result of an item that may have been carried out."""
    return ItemResult(
        number=place.number,
        type=item.type,
        status=ItemStatus.UNKNOWN,
        reference=item.reference,
        payment_id=item.payment_id,
        code=code,
        detail=detail,
    )


def of_payment(bare: ItemResult, payment: Payment) -> ItemResult:
    """The result that follows from the current state of a payment."""
    status = status_of_payment(payment)
    code, detail = None, None
    match status:
        case ItemStatus.DECLINED:
            code = payment.decline_code or "declined"
            detail = "the payment was declined" + (", and a second check confirmed it" if payment.did_check_again else "")
        case ItemStatus.UNKNOWN if payment.decline_code is not None:
            code = "decline_unconfirmed"
            detail = f"declined ({payment.decline_code}), and the second check has not answered yet; {LATER}"
        case ItemStatus.UNKNOWN:
            code, detail = (
                "psp_timeout",
                f"the payment provider did not answer; it is never charged again, and {LATER}",
            )
        case ItemStatus.PENDING if payment.is_sync:
            code, detail = "action_required", "the customer has to confirm the payment at its payment_url"
        case ItemStatus.FAILED:
            code = payment.decline_code or f"payment_{payment.status.value.lower()}"
            detail = f"the payment is {payment.status.value}: nothing was charged"
        case _:
            pass
    return replace(
        bare,
        status=status,
        payment_id=payment.id,
        payment_status=payment.status,
        did_check_again=payment.did_check_again,
        code=code,
        detail=detail,
    )


async def _charge(context: Payments, place: Place, item: Item) -> Payment:
    """Charge once. Another payment is opened only if the PSP provably never received the previous one."""
    assert item.charge is not None
    attempt = 1
    while True:
        payment = await _open(context, place, item.charge, partial(place.request, item, attempt=attempt))
        payment = await _found_out(context, payment)
        if attempt == ATTEMPTS_MAX or not was_never_received(payment):
            return payment
        await _pause(place, BUSY_SECONDS * 2**attempt)
        attempt += 1


async def _found_out(context: Payments, payment: Payment) -> Payment:
    """Ask again about a charge whose answer was lost, for about as long as it takes until NOT_FOUND proves that the PSP never
    received it.
    """
    for seconds in LOOKS_SECONDS:
        if not is_under_way(payment):
            break
        await trio.sleep(seconds)
        payment = await verify_if_possible(context, payment, source=Source.ACCESS, seconds=context.psp_seconds)
    return payment


async def _pause(place: Place, seconds: float) -> None:
    """Wait before something begins. Raises `_GivenUp` if nothing may begin any more."""
    pieces = math.ceil(seconds / BUSY_SECONDS)
    for _ in range(pieces):
        if place.is_over():
            break
        await trio.sleep(seconds / pieces)
    if place.is_over():
        raise _GivenUp


async def _open(context: Payments, place: Place, wanted: NewPayment, new_request: Callable[[], Request]) -> Payment:
    wait_seconds = BUSY_SECONDS
    while True:
        request = new_request()
        try:
            outcome = await create(context, place.merchant(), wanted, request)
            if isinstance(outcome, Replay):
                return await _stored(context, request)
        except _WAITS:
            await _pause(place, wait_seconds)
            wait_seconds = min(2 * wait_seconds, BUSY_SECONDS_MAX)
            continue
        match outcome:
            case Opened(payment, busy=busy) if busy is not None and payment.status is Status.PENDING:
                await _pause(place, max(busy.retry_after_seconds, wait_seconds))
            case Opened(payment):
                return payment
            case InFlight():
                await trio.sleep(IN_FLIGHT_SECONDS)
            case Mismatch():
                raise _other_request()


async def _stored(context: Payments, request: Request) -> Payment:
    """The payment that a key names."""
    async with context.pool.connection() as connection:
        stored = await find_key(connection, request.merchant_id, request.key)
        payment = await find_payment(connection, request.merchant_id, PaymentId(stored.resource_id)) if stored else None
    if payment is None:
        raise NotFound("the payment of this item cannot be found")
    return payment


def _other_request() -> Conflict:
    return Conflict("this item was carried out as a different operation", code="idempotency_key_reused")


async def _verify(context: Payments, place: Place, item: Item, bare: ItemResult) -> ItemResult:
    payment = await _payment_of(context, place.merchant_id, item)
    verified = await verify_or_wait(context, payment, Source.ACCESS)
    result = of_payment(bare, verified.payment)
    if verified.failure is None:
        return result
    detail = str(verified.failure)[:DETAIL_LENGTH_MAX]
    return replace(result, status=ItemStatus.UNKNOWN, code=verified.failure.code, detail=detail)


async def _payment_of(context: Payments, merchant_id: MerchantId, item: Item) -> Payment:
    assert item.payment_id is not None
    while True:
        try:
            async with context.pool.connection() as connection:
                payment = await find_payment(connection, merchant_id, item.payment_id)
        except _WAITS:
            await trio.sleep(BUSY_SECONDS)
            continue
        if payment is None:
            raise NotFound("no such payment", code="no_such_payment")
        return payment


async def _capture(context: Payments, place: Place, item: Item, bare: ItemResult) -> ItemResult:
    payment_id = item.payment_id
    assert payment_id is not None
    done = await _repeated(place, lambda: capture(context, place.request(item), payment_id, item.amount_minor))
    if isinstance(done, Done):
        return _failed(of_payment(bare, done.payment), done.failure, is_pending=done.payment.pending is not None)
    return of_payment(bare, await _payment_of(context, place.merchant_id, item))


async def _refund(context: Payments, place: Place, item: Item, bare: ItemResult) -> ItemResult:
    payment_id = item.payment_id
    assert payment_id is not None

    ask = partial(refund, context, payment_id=payment_id, amount_minor=item.amount_minor, reason=item.reason)
    done = await _repeated(place, lambda: ask(request=place.request(item)))
    if isinstance(done, Refunded):
        return _failed(of_refund(bare, done.refund), done.failure, is_pending=done.refund.status is not RefundStatus.FAILED)
    return of_refund(bare, await _made(context, place.request(item), payment_id))


def of_refund(bare: ItemResult, refund: Refund) -> ItemResult:
    """The result that follows from the current state of a refund."""
    return replace(bare, status=status_of_refund(refund), refund_id=refund.id, code=refund.failure_code, detail=None)


async def _made(context: Payments, request: Request, payment_id: PaymentId) -> Refund:
    """The refund that a key names."""
    while True:
        try:
            async with context.pool.connection() as connection:
                stored = await find_key(connection, request.merchant_id, request.key)
                assert stored is not None
                assert stored.made_id is not None
                made = await find_refund(connection, request.merchant_id, payment_id, RefundId(stored.made_id))
        except _WAITS:
            await trio.sleep(BUSY_SECONDS)
            continue
        if made is None:
            raise NotFound("the refund of this item cannot be found")
        return made


async def _repeated(place: Place, ask: Callable[[], Awaitable[ItemOutcome]]) -> Done | Refunded | Replay:
    """Repeat an operation until it has a result. Raises `RequestError`, `_GivenUp`."""
    while True:
        try:
            outcome = await ask()
        except _WAITS:
            await _pause(place, BUSY_SECONDS)
            continue
        if isinstance(outcome, Mismatch):
            raise _other_request()
        if isinstance(outcome, InFlight):
            await trio.sleep(IN_FLIGHT_SECONDS)
        elif isinstance(outcome, Done | Refunded) and isinstance(outcome.failure, PspBusy):
            await _pause(place, max(outcome.failure.retry_after_seconds, BUSY_SECONDS))
        else:
            return outcome


def _failed(found: ItemResult, failure: PspError | None, *, is_pending: bool) -> ItemResult:
    """The result of an operation that the PSP did not carry out: followed up later unless the PSP refused it."""
    if failure is None:
        return found
    status = ItemStatus.FAILED if isinstance(failure, PspRejected) and not is_pending else ItemStatus.UNKNOWN
    return replace(found, status=status, code=failure.code, detail=str(failure)[:DETAIL_LENGTH_MAX])
