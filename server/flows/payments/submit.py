"""Opens an accepted payment at a PSP: checks it for fraud, gets its page or charges its token, and goes to another PSP if that is
safe.

Another account is asked only if the previous one provably received nothing, and only after the new operation is committed. At a
PSP that charges in two steps the reference of its object is committed before the token is charged, so that a lost answer can be
fetched. Nothing here charges twice: an operation is sent by the request that made it, and fetched by all others.
"""

from datetime import datetime, timedelta

import msgspec
import structlog
import trio
from msgspec.structs import replace

from core.errors import PspBusy, PspOutcomeUnknown, PspRejected, PspUnreachable, TokenUnknown
from core.evidence import Evidence, EvidenceKind, Risk, Source
from core.ids import PSP_ACCOUNT, OperationId, PspAccountId, encode_id
from core.payment import CLOSED, UNSETTLED, Change, Payment, Status, evidence_about, is_provisionally_declined
from core.refund_transition import REFUSED
from server.db.payments.payments import postpone
from server.flows.contexts import Payments, Psps
from server.flows.idempotency import Request, answer
from server.flows.payments.choose import first_with_room
from server.flows.payments.fraud import UNAVAILABLE
from server.flows.payments.settle import Answering, encode_payment, settle
from server.flows.payments.verify import close_ended_payment, verify_again
from server.psp.turn import Turn
from server.uuid7 import uuid7

_log = structlog.get_logger()


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of an opening.

    `is_first`: no earlier request for it can have been sent. `until`: when a retry may take it over; no other account is asked so
    late that both might. `may_wait`: a page that cannot be opened now is opened later; its client need not have it at once.
    `others`: the accounts to try next.
    `answering` is the request that is answered with the payment, once it has a definitive reply (`answered_by_opening`).
    """

    answering: Answering | None = None
    token: str | None = None
    is_first: bool = False
    until: datetime | None = None
    may_wait: bool = False
    others: tuple[PspAccountId, ...] = ()


def answered_by_opening(request: Request) -> Answering:
    """The request to open a payment, which is answered once it is opened."""
    return Answering(request, _has_opened)


def _has_opened(change: Change) -> bool:
    return is_opened(change.after)


def is_opened(payment: Payment) -> bool:
    """Return whether the payment has a definitive reply: it has its page, or its token was accepted."""
    if payment.is_sync:
        return payment.status in (Status.AUTHORIZED, Status.SUCCEEDED)
    return payment.payment_url is not None


async def key_lifetime(context: Psps, payment: Payment) -> timedelta:
    """The time for which the payment's PSP remembers an idempotency key. Nothing is repeated after that."""
    adapter = await context.psps.find(payment.psp_account_id)
    return adapter.capabilities.key_lifetime if adapter is not None else timedelta()


def is_nearly_over(context: Psps, payment: Payment) -> bool:
    """Return whether it is too late to ask a PSP to open or charge the payment: the request would be under way when the payment
    expires, and may then be found not to have arrived.
    """
    return context.now() + timedelta(seconds=context.psp_seconds) > payment.expires_at


async def open_again(context: Payments, payment: Payment) -> Payment:
    """Open the page of a payment whose request died before opening it, and which the PSP does not know. Never charges."""
    assert not payment.is_sync
    is_too_old = context.now() - payment.created_at > await key_lifetime(context, payment)
    if is_opened(payment) or is_nearly_over(context, payment) or is_too_old:
        return payment
    return await open_payment(context, payment, Opening())


async def open_payment(context: Payments, payment: Payment, opening: Opening, turn: Turn | None = None) -> Payment:
    """Open or charge the payment, apply the result, and return the payment. `turn` may hold a reserved place at its PSP.

    Raises `PspBusy` if the PSP takes no calls at the moment: the payment is then as it was, and a page is opened later.
    """
    with turn or context.turn(payment.merchant_id) as taken:
        return await _open(context, payment, opening, taken)


async def _open(context: Payments, payment: Payment, opening: Opening, turn: Turn) -> Payment:
    risk: Risk | None = None
    if context.fraud is not None and payment.risk is None:
        risk = await context.fraud.check(payment)
        if risk is None or risk is Risk.DENIED:
            return await _not_allowed(context, payment, opening, risk)
    left = list(opening.others)
    while True:
        busy, evidence = None, None
        if payment.is_sync and is_nearly_over(context, payment):
            break
        try:
            payment, evidence = await _ask(context, payment, opening, risk)
        except PspBusy as error:
            busy = error
        if busy is None and (evidence is None or evidence.kind is not EvidenceKind.UNREACHABLE):
            break
        rerouted = await reroute(context, payment, left, turn, until=opening.until)
        if rerouted is None:
            break
        payment = rerouted
    if busy is not None:
        if not payment.is_sync:
            await _open_later(context, payment, busy)
        raise busy
    if evidence is None or (evidence.kind is EvidenceKind.UNREACHABLE and opening.may_wait):
        return payment
    return await _apply(context, payment, replace(evidence, risk=risk) if risk is not None else evidence, opening)


async def _open_later(context: Payments, payment: Payment, busy: PspBusy) -> None:
    """Have the follow-up job open a page once the PSP has room."""
    later = context.now() + timedelta(seconds=busy.retry_after_seconds)
    async with context.pool.connection() as connection:
        await postpone(connection, payment, due_at=later)


async def _not_allowed(context: Payments, payment: Payment, opening: Opening, risk: Risk | None) -> Payment:
    """End a denied payment. One that could not be checked waits if it can; a token is not stored, so its payment ends."""
    if risk is None and not payment.is_sync:
        return payment
    code = "fraud_denied" if risk is Risk.DENIED else UNAVAILABLE
    denied = replace(evidence_about(payment, EvidenceKind.DENIED, Source.POLICY, code=code), risk=risk)
    if payment.status is not Status.PENDING or (payment.is_sync and not opening.is_first):
        return payment  # an earlier request may have charged it: it is fetched, not ended here
    settled = await settle(
        context,
        payment.merchant_id,
        payment.id,
        denied,
        known=payment,
        answering=Answering(opening.answering.request, lambda _: False) if opening.answering is not None else None,
        only_if_unchanged=True,
    )
    assert settled is not None
    return settled.payment


async def _apply(context: Payments, payment: Payment, evidence: Evidence, opening: Opening) -> Payment:
    answering = opening.answering
    is_open = evidence.kind in (EvidenceKind.OPENED, EvidenceKind.AUTHORIZED, EvidenceKind.CAPTURED)
    settled = await settle(
        context,
        payment.merchant_id,
        payment.id,
        evidence,
        known=payment,
        answering=answering,
        only_if_unchanged=evidence.kind in (EvidenceKind.UNREACHABLE, EvidenceKind.REJECTED),
    )
    assert settled is not None
    after = settled.payment
    if answering is not None and not settled.is_answered and is_opened(after):
        await answer(context, answering.request, encode_payment(after))
    was_opened_too_late = is_open and not payment.is_sync and after.status in CLOSED
    is_refused = evidence.kind in (EvidenceKind.REJECTED, EvidenceKind.UNREACHABLE)
    is_left_open = is_refused and after.status in CLOSED and after.reference is not None
    if was_opened_too_late or is_left_open:
        await close_ended_payment(context, after)
    if is_provisionally_declined(after):
        return await verify_again(context, after)
    return after


async def _ask(context: Payments, payment: Payment, opening: Opening, risk: Risk | None) -> tuple[Payment, Evidence | None]:
    """Call the PSP. Returns the payment as it was at the last call, and the evidence, or None for none. Raises `PspBusy`."""
    is_first = opening.is_first
    try:
        adapter = context.psps.loaded(payment.psp_account_id)
        if adapter is None:
            with trio.fail_after(context.psp_seconds):
                adapter = await context.psps.of(payment.psp_account_id)
        if opening.token is not None and adapter.two_steps is None:
            return payment, await adapter.charge(payment, opening.token)  # one call, bounded in time by its transport
        with trio.fail_after(context.psp_seconds):
            if opening.token is None:
                return payment, await adapter.create_intent(payment)
            if payment.reference is None and adapter.two_steps is not None:
                prepared = await adapter.two_steps.prepare(payment, opening.token)
                payment = await _prepare(context, payment, replace(prepared, risk=risk))
                if payment.status not in UNSETTLED or payment.reference is None:
                    return payment, None  # something else has happened to it meanwhile
            return payment, await adapter.charge(payment, opening.token)
    except PspBusy:
        raise
    except PspUnreachable:
        # An earlier request may have reached the PSP before it died; then this one's failure proves nothing.
        return payment, evidence_about(payment, EvidenceKind.UNREACHABLE, Source.CREATE) if is_first else None
    except PspRejected as error:
        _log.warning("the PSP refused a payment", payment=payment.public_id, error=str(error))
        code = error.code if isinstance(error, TokenUnknown) else REFUSED
        return payment, evidence_about(payment, EvidenceKind.REJECTED, Source.CREATE, code=code) if is_first else None
    except (PspOutcomeUnknown, trio.TooSlowError):
        return payment, evidence_about(payment, EvidenceKind.LOST, Source.CREATE)


async def _prepare(context: Payments, payment: Payment, evidence: Evidence) -> Payment:
    """Commit the reference of the object that will be charged."""
    settled = await settle(context, payment.merchant_id, payment.id, evidence, known=payment)
    assert settled is not None
    return settled.payment


async def reroute(
    context: Payments, payment: Payment, left: list[PspAccountId], turn: Turn, *, until: datetime | None
) -> Payment | None:
    """Commit a new operation at the next healthy account of `left` that has room. Returns None if there is none, or it is too
    late.
    """
    seconds = (until - context.now()).total_seconds() - context.psp_seconds if until is not None else 0.0
    if payment.reference is not None or seconds < 0:
        return None
    account_id = await _with_room(context, payment, left, turn, seconds=seconds)
    if account_id is None:
        return None
    wanted = evidence_about(
        payment, EvidenceKind.REROUTED, Source.CREATE, requested_id=OperationId(uuid7()), rerouted_to=account_id
    )
    settled = await settle(context, payment.merchant_id, payment.id, wanted, known=payment, only_if_unchanged=True)
    if settled is None or not settled.changed:
        return None
    context.metrics.failed_over(payment.psp_account_id, account_id)
    _log.warning("a payment goes to another PSP", payment=payment.public_id, psp_account=encode_id(PSP_ACCOUNT, account_id))
    return settled.payment


async def _with_room(
    context: Payments, payment: Payment, left: list[PspAccountId], turn: Turn, *, seconds: float
) -> PspAccountId | None:
    """Reserve a place at an account of `left`, and remove it there with those before it. Waits only if no account has room."""
    found = [await context.psps.find(one) for one in left if one != payment.psp_account_id]
    healthy = [one for one in found if one is not None and one.is_enabled and one.guard.is_healthy]
    chosen = await first_with_room(healthy, turn)
    if chosen is None and healthy:
        try:
            await healthy[0].guard.reserve(turn, seconds=seconds)
        except PspBusy:
            return None
        chosen = healthy[0]
    if chosen is None:
        return None
    del left[: left.index(chosen.account_id) + 1]
    return chosen.account_id
