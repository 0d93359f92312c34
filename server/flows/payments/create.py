"""Accept a payment, and open its page at the PSP or charge its token.

Durable intent first: key, payment and operation are committed before the first byte goes to the PSP, the PSP is called outside
any transaction, and its answer goes through the transition function. A request that died in between is continued by the next one
with its key, or by the follow-up job: both fetch or repeat with the operation's id, which is the PSP's idempotency key.
"""

from datetime import timedelta
from functools import partial

import msgspec
import trio
from msgspec.structs import replace

from core.errors import Conflict, DatabaseRefused, DatabaseUnavailable, Forbidden, PspBusy, Unprocessable
from core.evidence import EvidenceKind, Source
from core.idempotency import InFlight, Mismatch, Replay, Reply, Resume, StoredKey, decide
from core.ids import PAYMENT, LogId, MerchantId, OperationId, PaymentId, PspAccountId, encode_id
from core.payment import FINAL, UNSETTLED, Payment, PaysOnce, Status, evidence_about, is_provisionally_declined
from core.schedule import first_due_at
from server.concurrency.background import Work
from server.db.merchants.merchants import Merchant
from server.db.payments.creations import Creation, OrderIsLive, find_payer, is_own
from server.db.payments.payments import find_payment
from server.flows.contexts import Payments
from server.flows.idempotency import IN_FLIGHT_MARGIN_SECONDS, Request, answer, end_failed_flight, end_flight, wait_for_reply
from server.flows.payments.choose import NewPayment, choose, is_known
from server.flows.payments.settle import encode_payment, settle
from server.flows.payments.submit import Opening, answered_by_opening, is_nearly_over, is_opened, key_lifetime, open_payment
from server.flows.payments.verify import SYNC_EXPIRES_SECONDS, verify_if_possible
from server.http.client.url import parse_origin, split
from server.psp.turn import Turn
from server.uuid7 import uuid7

ORDER_CONSTRAINT = "one_live_payment_per_order"


class Opened(msgspec.Struct, frozen=True):
    """The payment after opening. `replayed`: an earlier request had accepted it; `is_waiting`: the PSP is still being asked, or
    its page is opened later; `busy`: the PSP took no calls, and a retry with the same key charges the token. `reply` is the
    definitive reply that was stored with it, if there is one already.
    """

    payment: Payment
    replayed: bool = False
    is_waiting: bool = False
    busy: PspBusy | None = None
    reply: Reply | None = None


CreateOutcome = Opened | Replay | Mismatch | InFlight


async def create(
    context: Payments,
    merchant: Merchant,
    wanted: NewPayment,
    request: Request,
    *,
    reply_within_seconds: float | None = None,
) -> CreateOutcome:
    """Accept a payment once per key, and open or charge it at the PSP.

    It goes to the first account of the merchant's rules that can take it, is healthy and has room. The place at the PSP is
    reserved before anything is written: a token that finds none in time is refused, a page is opened later. With
    `reply_within_seconds` the payment is returned after that time, while the PSP is still being asked; None waits for the PSP. If
    it is canceled, a retry or the follow-up job completes it. Raises `PspBusy`, `Overloaded`, `DatabaseUnavailable`, `Forbidden`
    if the merchant's payments are stopped, `Conflict` if the order has a live payment or is paid and the merchant allows one,
    `Unprocessable` if no account takes such a payment or its customer may not be sent back to `return_url`.
    """
    if not merchant.accepts_payments and not await is_known(context, request):
        raise Forbidden(
            "new payments of this merchant are stopped; reading, refunding and canceling still work", code="payments_stopped"
        )
    if wanted.return_url is not None:
        await _require_return_host(context, merchant, wanted.return_url, request)
    reply_by = None
    if reply_within_seconds is not None:
        context.background.require_room()
        reply_by = trio.current_time() + reply_within_seconds
    turn = context.turn(merchant.id)
    try:
        chosen = await choose(context, merchant, wanted, request, turn, reply_within_seconds=reply_within_seconds)
        creation = _creation(context, merchant, wanted, request, chosen.account_ids[0])
        stored = await _accept(context, request, creation)
    except BaseException:
        turn.release()
        raise
    if stored is None:
        opening = Opening(
            answering=answered_by_opening(request),
            token=wanted.token,
            is_first=True,
            until=creation.in_flight_until,
            may_wait=reply_by is not None and wanted.token is None,
            others=tuple(chosen.account_ids[1:]),
        )
        return await _opened(context, creation, opening, turn, reply_by=trio.current_time() if chosen.is_put_off else reply_by)
    turn.release()
    return await _repeated(context, merchant, wanted, request, stored, may_wait=reply_by is not None)


async def _repeated(
    context: Payments, merchant: Merchant, wanted: NewPayment, request: Request, stored: StoredKey, *, may_wait: bool
) -> CreateOutcome:
    """Answer a request whose key was used before: with its reply, or by continuing its payment."""
    decision = decide(stored, request.fingerprint)
    if isinstance(decision, InFlight) and (later := await wait_for_reply(context, request)) is not None:
        decision = decide(later, request.fingerprint)
    if isinstance(decision, InFlight) and may_wait:
        return Opened(await _read(context, merchant.id, PaymentId(stored.resource_id)), replayed=True, is_waiting=True)
    if not isinstance(decision, Resume):
        return decision
    payment_id = PaymentId(decision.stored.resource_id)
    try:
        return Opened(await _resume(context, merchant, payment_id, request, token=wanted.token), replayed=True)
    except PspBusy as busy:
        return replace(_busy(await _read(context, merchant.id, payment_id), busy), replayed=True)


async def _opened(context: Payments, creation: Creation, opening: Opening, turn: Turn, *, reply_by: float | None) -> Opened:
    """Carry out the opening of an accepted payment, as long as the request waits for it; `reply_by` None means to its end."""
    accepted = creation.payment
    try:
        if reply_by is None:
            payment = await _open_in_time(context, creation, opening, turn)
            assert opening.answering is not None
            return Opened(payment, reply=opening.answering.reply)
        if not context.background.has_room:  # there was some before the payment was written
            turn.release()
            assert opening.answering is not None
            await end_flight(context, opening.answering.request, in_flight_until=creation.in_flight_until)
            return _busy(accepted, PspBusy("too many payments are under way"))
        started = context.background.start(partial(_open_in_time, context, creation, opening, turn))
        opened = await _reply_within(started, accepted, seconds=max(reply_by - trio.current_time(), 0.0))
    except PspBusy as busy:
        return _busy(accepted, busy)
    is_put_off = not accepted.is_sync and opened.payment.status is Status.PENDING and not is_opened(opened.payment)
    return replace(opened, is_waiting=opened.is_waiting or is_put_off)


def _busy(payment: Payment, busy: PspBusy) -> Opened:
    """The payment at a PSP that takes no calls at the moment: a page is opened later, and a token is not stored."""
    return Opened(payment, busy=busy) if payment.is_sync else Opened(payment, is_waiting=True)


async def _read(context: Payments, merchant_id: MerchantId, payment_id: PaymentId) -> Payment:
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, merchant_id, payment_id)
    if payment is None:
        raise DatabaseUnavailable("a stored key names a payment that does not exist")
    return payment


async def _accept(context: Payments, request: Request, creation: Creation) -> StoredKey | None:
    """Commit the payment. Returns None if it is new, else what its key has left. Raises `Conflict` for a live order."""
    try:
        stored = await context.creations.submit(creation)
    except DatabaseRefused as error:
        if error.constraint != ORDER_CONSTRAINT:
            await end_failed_flight(context, request, error, in_flight_until=creation.in_flight_until)  # noqa: ASYNC120 - shielded there
            raise
        stored = OrderIsLive()
    except Exception as error:
        await end_failed_flight(context, request, error, in_flight_until=creation.in_flight_until)  # noqa: ASYNC120 - shielded there
        raise
    if isinstance(stored, OrderIsLive):
        raise await _order_taken(context, creation.payment)
    return None if is_own(stored, creation) else stored


async def _order_taken(context: Payments, payment: Payment) -> Conflict:
    """The conflict of a payment whose order has a live payment or a paid one, and the merchant allows only one."""
    pays_once, paid_id = payment.terms.pays_once, None
    if pays_once is not None:
        async with context.pool.connection() as connection:
            paid_id = await find_payer(connection, payment.merchant_id, payment.order_id, pays_once=pays_once)
    if paid_id is not None:
        is_for_ever = pays_once is PaysOnce.ALWAYS
        until = "it is paid once" if is_for_ever else "it can be paid again once a refund in full has succeeded"
        return Conflict(f"{encode_id(PAYMENT, paid_id)} has paid this order: {until}", code="order_is_paid")
    return Conflict(
        "another payment of this order is live: cancel it first, or wait until it has ended", code="order_has_live_payment"
    )


async def _require_return_host(context: Payments, merchant: Merchant, return_url: str, request: Request) -> None:
    """Raise `Unprocessable` for a return_url on a host that is not on the merchant's list, unless its key is known."""
    host = parse_origin(split(return_url)[0]).host
    if not merchant.may_return_to(host) and not await is_known(context, request):
        allowed = ", ".join(merchant.return_hosts) or "none yet"
        raise Unprocessable(
            f"customers may not be sent back to {host}: the merchant's return hosts are {allowed}; an operator sets them with "
            "`florin merchant set --return-hosts`",
            code="return_host_not_allowed",
            path="$.return_url",
        )


async def _reply_within(work: Work[Payment], accepted: Payment, *, seconds: float) -> Opened:
    payment = await work.result(seconds=seconds)
    return Opened(payment) if payment is not None else Opened(accepted, is_waiting=True)


async def _open_in_time(context: Payments, creation: Creation, opening: Opening, turn: Turn) -> Payment:
    """Open a payment that was just accepted, unless accepting it took so long that a retry may be opening it already."""
    if context.now() + timedelta(seconds=context.psp_seconds) > creation.in_flight_until:
        turn.release()
        return creation.payment
    assert opening.answering is not None
    request = opening.answering.request
    try:
        payment = await open_payment(context, creation.payment, opening, turn)
    except Exception as error:
        await end_failed_flight(context, request, error, in_flight_until=creation.in_flight_until)  # noqa: ASYNC120 - shielded there
        raise
    if not is_opened(payment):  # no definitive reply is stored: a retry need not wait
        await end_flight(context, request, in_flight_until=creation.in_flight_until)
    return payment


async def _resume(
    context: Payments, merchant: Merchant, payment_id: PaymentId, request: Request, *, token: str | None
) -> Payment:
    """Continue a payment whose first request died, or got a reply that was not definitive.

    A charge is fetched before it is repeated, and not repeated once its time is over or the merchant's payments are stopped. The
    takeover is committed first, so that the earlier request cannot go to another PSP.
    """
    payment = await _read(context, merchant.id, payment_id)
    if payment.is_sync and payment.status in UNSETTLED:
        payment = await verify_if_possible(context, payment, source=Source.ACCESS, seconds=context.psp_seconds)
    if is_opened(payment):
        await answer(context, request, encode_payment(payment))
        return payment
    is_over = context.now() - payment.created_at > await key_lifetime(context, payment) or is_nearly_over(context, payment)
    is_asked_about = payment.is_sync and (payment.status is Status.UNKNOWN or is_provisionally_declined(payment))
    if payment.status in FINAL or is_over or is_asked_about or not merchant.accepts_payments:
        return payment
    turn = context.turn(payment.merchant_id)
    with turn:
        return await _open_again(context, payment, request, token, turn)


async def _open_again(context: Payments, payment: Payment, request: Request, token: str | None, turn: Turn) -> Payment:
    """Open a payment for another request with its key, from a place at its PSP that is reserved before. Raises `PspBusy`."""
    adapter = await context.psps.find(payment.psp_account_id)
    if adapter is not None:
        left_seconds = (payment.expires_at - context.now()).total_seconds() - context.psp_seconds
        await adapter.guard.reserve(turn, seconds=max(min(left_seconds, context.psp_seconds), 0.0))
    resumed = evidence_about(payment, EvidenceKind.RESUMED, Source.CREATE)
    settled = await settle(context, payment.merchant_id, payment.id, resumed, known=payment, only_if_unchanged=True)
    assert settled is not None
    payment = settled.payment
    if not settled.changed:  # it has just changed
        if is_opened(payment):
            await answer(context, request, encode_payment(payment))
        return payment
    return await open_payment(context, payment, Opening(answering=answered_by_opening(request), token=token), turn)


def _creation(context: Payments, merchant: Merchant, wanted: NewPayment, request: Request, account_id: PspAccountId) -> Creation:
    now = context.now()
    expires_in_seconds = wanted.expires_in_seconds if wanted.token is None else SYNC_EXPIRES_SECONDS
    expires_at = now + timedelta(seconds=expires_in_seconds)
    payment = Payment(
        id=PaymentId(request.id),
        merchant_id=merchant.id,
        psp_account_id=account_id,
        operation_id=OperationId(uuid7()),
        order_id=wanted.order_id,
        money=wanted.money,
        status=Status.PENDING,
        version=1,
        expires_at=expires_at,
        created_at=now,
        updated_at=now,
        due_at=first_due_at(created_at=now, expires_at=expires_at),
        return_url=wanted.return_url,
        description=wanted.description,
        capture=wanted.capture,
        is_sync=wanted.token is not None,
        is_exclusive=merchant.one_live_payment_per_order or merchant.one_paid_payment_per_order,
        statement_descriptor=wanted.statement_descriptor or merchant.statement_descriptor,
        metadata=wanted.metadata,
        terms=merchant.terms_in(wanted.money.currency),
    )
    calls = 1 if wanted.token is None else 2  # a declined token is fetched again
    return Creation(
        payment=payment,
        log_id=LogId(uuid7()),
        key=request.key,
        fingerprint=request.fingerprint,
        in_flight_until=now + timedelta(seconds=calls * context.psp_seconds + IN_FLIGHT_MARGIN_SECONDS),
    )
