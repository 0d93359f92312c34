"""Accept a payment, and open its page at the PSP or charge its token.

Durable intent first: key, payment and operation are committed before the first byte goes to the PSP, the PSP is called outside
any transaction, and its answer goes through the transition function. A request that died in between is continued by the next one
with its key, or by the follow-up job: both fetch or repeat with the operation's id, which is the PSP's idempotency key.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial

import msgspec
from msgspec.structs import replace

from core.errors import Conflict, DatabaseRefused, DatabaseUnavailable, Forbidden, Overloaded, Unprocessable
from core.evidence import EvidenceKind, Source
from core.idempotency import InFlight, Mismatch, Replay, Resume, StoredKey, decide
from core.ids import LogId, MerchantId, OperationId, PaymentId, PspAccountId
from core.money import Money
from core.payment import FINAL, UNSETTLED, Capture, Payment, Status, evidence_about, is_provisionally_declined
from core.schedule import first_due_at
from server.concurrency.background import Work
from server.db.merchants.merchants import Merchant
from server.db.payments.creations import Creation, OrderIsLive, is_own
from server.db.payments.idempotency_keys import find_key
from server.db.payments.payments import find_payment
from server.flows.contexts import Payments, Psps
from server.flows.idempotency import IN_FLIGHT_MARGIN_SECONDS, Request, answer, wait_for_reply
from server.flows.payments.settle import encode_payment, settle
from server.flows.payments.submit import Opening, is_opened, key_lifetime, open_payment
from server.flows.payments.verify import verify_if_possible
from server.psp.adapter import Adapter
from server.psp.routing import PaymentKind
from server.uuid7 import uuid7

SYNC_EXPIRES_SECONDS = 60
"""The time for which a sync payment without an answer is left to its request. After that it is fetched and never charged."""

ORDER_CONSTRAINT = "one_live_payment_per_order"


class NewPayment(msgspec.Struct, frozen=True, kw_only=True):
    """A validated payment request. With a `token` of the PSP it is charged at once, otherwise it gets a hosted page."""

    money: Money
    order_id: str
    description: str | None
    return_url: str | None
    expires_in_seconds: int
    token: str | None = None
    capture: Capture = Capture.AUTOMATIC
    statement_descriptor: str | None = None
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)


class Opened(msgspec.Struct, frozen=True):
    """The payment after opening. `replayed`: an earlier request had accepted it; `is_waiting`: the PSP is still being asked."""

    payment: Payment
    replayed: bool = False
    is_waiting: bool = False


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

    It goes to the first account of the merchant's rules that can take it and is healthy. With `reply_within_seconds` the payment
    is returned after that time, while the PSP is still being asked; None waits for the PSP. If it is canceled, a retry or the
    follow-up job completes it. Raises `Overloaded`, `DatabaseUnavailable`, `Forbidden` if the merchant's payments are stopped,
    `Conflict` if the order has a live payment, `Unprocessable` if no account takes such a payment.
    """
    if not merchant.accepts_payments and not await _is_known(context, request):
        raise Forbidden(
            "new payments of this merchant are stopped; reading, refunding and canceling still work", code="payments_stopped"
        )
    if reply_within_seconds is not None:
        context.background.require_room()
    may_wait = reply_within_seconds is not None and wanted.token is None
    candidates = context.psps.candidates(merchant.accounts_for(wanted.money), kind_of(merchant, wanted))
    chosen, *others = await _choose(context, request, candidates, merchant, may_wait=may_wait)
    creation = _creation(context, merchant, wanted, request, chosen)
    stored = await _accept(context, creation)
    if stored is None:
        work = partial(_open_in_time, context, creation, request, wanted.token, others, may_wait=may_wait)
        if reply_within_seconds is None:
            return Opened(await work())
        opened = await _reply_within(context.background.start(work), creation.payment, seconds=reply_within_seconds)
        is_put_off = may_wait and opened.payment.status is Status.PENDING and not is_opened(opened.payment)
        return replace(opened, is_waiting=True) if is_put_off else opened
    decision = decide(stored, request.fingerprint, now=context.now())
    if isinstance(decision, InFlight) and (later := await wait_for_reply(context, request)) is not None:
        decision = decide(later, request.fingerprint, now=context.now())
    if isinstance(decision, InFlight) and reply_within_seconds is not None:
        return Opened(await _read(context, merchant.id, PaymentId(stored.resource_id)), replayed=True, is_waiting=True)
    if not isinstance(decision, Resume):
        return decision
    payment = await _resume(context, merchant, PaymentId(decision.stored.resource_id), request, token=wanted.token)
    return Opened(payment, replayed=True)


def kind_of(merchant: Merchant, wanted: NewPayment) -> PaymentKind:
    """The capability that an account needs for the payment."""
    return PaymentKind(
        mode=merchant.mode,
        money=wanted.money,
        by_token=wanted.token is not None,
        by_hand=wanted.capture is Capture.MANUAL,
        has_return_url=wanted.return_url is not None,
        page_seconds=wanted.expires_in_seconds,
    )


def has_an_account(context: Psps, merchant: Merchant) -> bool:
    """Return whether any account of the merchant can take new payments."""
    account_ids = {merchant.psp_account_id, *(one.psp_account_id for one in merchant.routes)}
    return context.psps.has_any(account_ids, mode=merchant.mode)


async def _choose(
    context: Payments, request: Request, candidates: Sequence[Adapter], merchant: Merchant, *, may_wait: bool
) -> list[PspAccountId]:
    """The accounts that the payment may go to, the first one to ask first.

    Without a healthy one, a page that `may_wait` is opened later, at the first account; a new request is refused otherwise.
    Raises `Overloaded` or `Unprocessable`.
    """
    healthy = [adapter.account_id for adapter in candidates if adapter.guard.is_healthy]
    if healthy:
        if healthy[0] != candidates[0].account_id:
            context.metrics.failed_over(candidates[0].account_id, healthy[0])
        return healthy
    if may_wait and candidates:
        return [candidates[0].account_id]
    if await _is_known(context, request):
        return [merchant.psp_account_id]
    if candidates:
        raise Overloaded("no payment provider can be reached at the moment: try again in a moment", code="psp_unavailable")
    if not has_an_account(context, merchant):
        raise Overloaded("no payment provider takes payments of this merchant at the moment", code="psp_unavailable")
    raise Unprocessable(
        "none of this merchant's payment providers takes a payment of this currency, amount and kind", code="no_provider"
    )


async def _is_known(context: Payments, request: Request) -> bool:
    """Return whether the key was used before, so that its payment was accepted at that time."""
    async with context.pool.connection() as connection:
        return await find_key(connection, request.merchant_id, request.key) is not None


async def _read(context: Payments, merchant_id: MerchantId, payment_id: PaymentId) -> Payment:
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, merchant_id, payment_id)
    if payment is None:
        raise DatabaseUnavailable("a stored key names a payment that does not exist")
    return payment


async def _accept(context: Payments, creation: Creation) -> StoredKey | None:
    """Commit the payment. Returns None if it is new, else what its key has left. Raises `Conflict` for a live order."""
    try:
        stored = await context.creations.submit(creation)
    except DatabaseRefused as error:
        if error.constraint != ORDER_CONSTRAINT:
            raise
        stored = OrderIsLive()
    if isinstance(stored, OrderIsLive):
        raise Conflict(
            "another payment of this order is live: cancel it first, or wait until it has ended", code="order_has_live_payment"
        )
    return None if is_own(stored, creation) else stored


async def _reply_within(work: Work[Payment], accepted: Payment, *, seconds: float) -> Opened:
    payment = await work.result(seconds=seconds)
    return Opened(payment) if payment is not None else Opened(accepted, is_waiting=True)


async def _open_in_time(
    context: Payments,
    creation: Creation,
    request: Request,
    token: str | None,
    others: Sequence[PspAccountId],
    *,
    may_wait: bool,
) -> Payment:
    """Open a payment that was just accepted, unless accepting it took so long that a retry may be opening it already."""
    if context.now() + timedelta(seconds=context.psp_seconds) > creation.in_flight_until:
        return creation.payment
    opening = Opening(
        request=request,
        token=token,
        is_first=True,
        until=creation.in_flight_until,
        may_wait=may_wait,
        others=tuple(others),
    )
    return await open_payment(context, creation.payment, opening)


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
    now = context.now()
    is_over = now - payment.created_at > await key_lifetime(context, payment)
    # Once it expires the PSP may turn out not to know it; no request may be under way then.
    is_nearly_over = now + timedelta(seconds=context.psp_seconds) > payment.expires_at
    is_asked_about = payment.is_sync and (payment.status is Status.UNKNOWN or is_provisionally_declined(payment))
    if payment.status in FINAL or is_over or is_nearly_over or is_asked_about or not merchant.accepts_payments:
        return payment
    resumed = evidence_about(payment, EvidenceKind.RESUMED, Source.CREATE)
    settled = await settle(context, payment.merchant_id, payment.id, resumed, known=payment, only_if_unchanged=True)
    assert settled is not None
    payment = settled.payment
    if not settled.changed:  # it has just changed
        if is_opened(payment):
            await answer(context, request, encode_payment(payment))
        return payment
    return await open_payment(context, payment, Opening(request=request, token=token))


def _creation(context: Payments, merchant: Merchant, wanted: NewPayment, request: Request, account_id: PspAccountId) -> Creation:
    now = context.now()
    expires_in_seconds = wanted.expires_in_seconds if wanted.token is None else SYNC_EXPIRES_SECONDS
    expires_at = now + timedelta(seconds=expires_in_seconds)
    payment = Payment(
        id=PaymentId(uuid7()),
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
        is_exclusive=merchant.one_live_payment_per_order,
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
