"""Carries out what operators have asked for and another one has approved, in a worker, through the flows of payments.

Carrying out a request twice changes nothing: evidence is idempotent, a refund has the request's id, and what posts by itself does
so in the transaction that ends the request. So a worker that dies in between leaves nothing half done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

import msgspec

from core.errors import Conflict, DomainError, Overloaded, RequestError
from core.evidence import Evidence, EvidenceKind, Finding, Source
from core.ids import EventId, PaymentId, RefundId
from core.ledger import SUSPENSE, Transfer, TransferKind, WalletKind, transfer
from core.money import Money
from core.operator_requests import (
    ADJUSTMENT_ACCOUNTS,
    Adjust,
    MoveSuspense,
    RefundPayment,
    ResolvePayment,
    ResolveRefund,
    needs_approval,
)
from core.operators import RIGHTS, Right
from core.operators_word import FROM_SUSPENSE
from core.payment import Payment, Status, evidence_about
from core.refund import RefundStatus
from core.refund_transition import Balances
from core.transition import apply
from server import resources
from server.db.connection import Connection
from server.db.events.events import append_event
from server.db.ledger.postings import post
from server.db.ledger.suspense import Suspended, list_suspended
from server.db.operators.operators import list_operators
from server.db.operators.requests import OperatorRequest, RequestState, end_request, lock_request
from server.db.payments.balance_locked import change_under_lock, lock_balances
from server.db.payments.change_row import ChangeRow
from server.db.payments.findings import close_findings
from server.db.payments.payments import find_payment
from server.db.payments.refunds import find_refund, list_refunds
from server.flows.contexts import Psps
from server.flows.operators.requests import captured_minor, is_large_refund
from server.flows.payments.refund import accept, send
from server.flows.payments.settle import row_of, settle, settle_refund
from server.uuid7 import uuid7

SUSPENDED_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Done:
    """An end of a request: the result in words, and the kinds of findings that it has mended."""

    result: str
    mended: tuple[Finding, ...] = ()


async def carry_out(context: Psps, request: OperatorRequest, *, refund_approval_minor: int) -> None:
    """Carry out an approved request, and record its end. Raises `DatabaseUnavailable`, `Overloaded`, `PspError`: try again.

    What needs an approval is judged again here, by this worker's settings and the payment as it is now.
    """
    if request.document is None:
        return  # of a newer version: one of its workers carries it out
    try:
        await _require_operators(context, request)
        _require_approval(request, needed=needs_approval(request.document))
        match request.document:
            case ResolvePayment():
                done = await _resolve_payment(context, request, request.document)
            case ResolveRefund():
                done = await _resolve_refund(context, request, request.document)
            case RefundPayment():
                done = await _refund(context, request, request.document, refund_approval_minor)
            case MoveSuspense():
                done = await _move_suspense(context, request, request.document)
            case Adjust():
                done = await _adjust(context, request, request.document)
            case _:
                assert_never(request.document)
    except (RequestError, DomainError) as error:
        await _end(context, request, RequestState.FAILED, Done(str(error)))
    else:
        await _end(context, request, RequestState.DONE, done)


def _require_approval(request: OperatorRequest, *, needed: bool) -> None:
    if needed and request.approved_by is None:
        raise Conflict("this needs the approval of another operator by now: ask for it again", code="not_approved")


async def _require_operators(context: Psps, request: OperatorRequest) -> None:
    """Raise `Conflict` unless those who have requested and approved may move money, still."""
    async with context.pool.connection() as connection:
        listed = await list_operators(connection)
    allowed = {
        one.operator.id
        for one in listed
        if one.disabled_at is None and not one.operator.is_service and Right.MONEY in RIGHTS[one.operator.role]
    }
    for operator_id in (request.requested_by, request.approved_by):
        if operator_id is not None and operator_id not in allowed:
            raise Conflict(f"{request.operators}: not every one of them may move money now", code="role_lacks_right")


async def _end(context: Psps, request: OperatorRequest, state: RequestState, done: Done) -> None:
    async with context.pool.connection() as connection, connection.atomic():
        if await end_request(connection, request, state, done.result, now=context.now()):
            await _close_findings(connection, request, done.mended)


async def _close_findings(connection: Connection, request: OperatorRequest, kinds: Sequence[Finding]) -> None:
    """Mark the findings as fixed that a request has mended."""
    if request.payment_id is not None and kinds:
        await close_findings(
            connection, request.merchant_id, request.payment_id, kinds, operator=request.operators, note=request.reason
        )


async def _payment(context: Psps, request: OperatorRequest, payment_id: PaymentId | None) -> Payment:
    async with context.pool.connection() as connection:
        found = await find_payment(connection, request.merchant_id, payment_id) if payment_id is not None else None
    if found is None:
        raise Conflict("the payment does not exist")
    return found


async def _resolve_payment(context: Psps, request: OperatorRequest, document: ResolvePayment) -> Done:
    payment = await _payment(context, request, request.payment_id)
    is_captured = document.outcome == "captured"
    if (payment.status is Status.SUCCEEDED) == is_captured and payment.is_operators_word:
        return Done(f"{payment.public_id} is {payment.status}", (Finding.OUTCOME_UNKNOWN,))
    _require_approval(request, needed=payment.status is Status.SUCCEEDED and payment.is_operators_word)
    word = _word(payment, is_captured=is_captured, reference=document.reference)
    settled = await settle(context, payment.merchant_id, payment.id, word, known=payment, only_if_unchanged=True)
    assert settled is not None
    if not settled.changed:
        raise Overloaded("the payment has changed meanwhile")  # and is looked at again
    return Done(f"{payment.public_id} is {settled.payment.status}", (Finding.OUTCOME_UNKNOWN,))


def _word(payment: Payment, *, is_captured: bool, reference: str | None, code: str | None = None) -> Evidence:
    kind = EvidenceKind.CAPTURED if is_captured else EvidenceKind.CANCELED
    money = Money(captured_minor(payment), payment.money.currency) if is_captured else None
    evidence = evidence_about(payment, kind, Source.OPERATOR, money=money, code=code)
    return msgspec.structs.replace(evidence, reference=reference)


async def _resolve_refund(context: Psps, request: OperatorRequest, document: ResolveRefund) -> Done:
    payment = await _payment(context, request, request.payment_id)
    refund_id = RefundId(document.refund_id)
    async with context.pool.connection() as connection:
        refund = await find_refund(connection, payment.merchant_id, payment.id, refund_id)
    if refund is None:
        raise Conflict("the refund does not exist")
    kind = EvidenceKind.REFUND_SUCCEEDED if document.outcome == "succeeded" else EvidenceKind.REFUND_FAILED
    word = evidence_about(payment, kind, Source.OPERATOR, money=refund.money, refund_id=refund_id)
    word = msgspec.structs.replace(word, psp_account_id=refund.psp_account_id, reference=None)
    is_known = {"succeeded": "SUCCEEDED", "failed": "FAILED"}[document.outcome] == refund.status
    if not is_known:
        settled = await settle_refund(context, payment.merchant_id, payment.id, refund_id, word)
        assert settled is not None
        assert settled.refund is not None
        refund = settled.refund
    async with context.pool.connection() as connection:
        others = await list_refunds(connection, payment.merchant_id, payment.id)
    is_last = not any(one.is_open for one in others)
    return Done(f"{refund.public_id} is {refund.status}", (Finding.REFUND_OUTCOME_UNKNOWN,) if is_last else ())


async def _refund(context: Psps, request: OperatorRequest, document: RefundPayment, limit_minor: int) -> Done:
    payment = await _payment(context, request, request.payment_id)
    async with context.pool.connection() as connection:
        known = await find_refund(connection, payment.merchant_id, payment.id, RefundId(request.id))
    if known is None:
        _require_approval(request, needed=is_large_refund(payment, document.amount_minor, limit_minor))
    accepted = await accept(
        context,
        payment,
        RefundId(request.id),
        amount_minor=document.amount_minor,
        reason=request.reason[:200],
        source=Source.OPERATOR,
    )
    if isinstance(accepted, Conflict):
        raise accepted
    sent = await send(context, payment, accepted)
    is_made = sent.refund.is_accepted and sent.refund.status is not RefundStatus.FAILED
    return Done(f"{sent.refund.public_id} is {sent.refund.status}", (Finding.LATE_REFUND_FAILED,) if is_made else ())


async def _move_suspense(context: Psps, request: OperatorRequest, document: MoveSuspense) -> Done:
    if document.to == "payment":
        return await _assign(context, request, document)
    async with context.pool.connection() as connection, connection.atomic():
        found = await _take(connection, request, document, now=context.now())
        if document.to == "wallet":
            await _tell_adjustment(connection, request, found.money, account="suspense", now=context.now())
        return await _end_moved(context, connection, request, f"{found.money} left suspense")


async def _assign(context: Psps, request: OperatorRequest, document: MoveSuspense) -> Done:
    """Charge the other payment by operators' word, and take the money out of suspense, in one transaction or not at all."""
    other = await _payment(context, request, PaymentId(document.payment_id) if document.payment_id else None)

    def decide(locked: Payment, _: Balances) -> ChangeRow:
        word = _word(locked, is_captured=True, reference=document.reference, code=FROM_SUSPENSE)
        change = apply(locked, word, now=context.now())
        if change is None:
            raise Conflict(f"{locked.public_id} is paid already")
        return row_of(change)

    async def also(connection: Connection) -> None:
        found = await _take(connection, request, document, now=context.now())
        if other.money.currency != found.money.currency or captured_minor(other) != found.money.amount_minor:
            raise Conflict(f"{found.money} is not what {other.public_id} is about, {other.money}: credit it to the wallet")
        await _end_moved(context, connection, request, f"{other.public_id} is SUCCEEDED with {found.money} from suspense")

    async with context.pool.connection() as connection:
        written = await change_under_lock(connection, context.change_group, request.merchant_id, other.id, decide, also=also)
    if written is not None:
        context.notify(written[1])
    return Done("assigned")


async def _take(connection: Connection, request: OperatorRequest, document: MoveSuspense, *, now: datetime) -> Suspended:
    """Take money out of suspense, in the caller's transaction. Raises `Conflict` if it is no longer there."""
    if not await lock_request(connection, request):
        raise Conflict("this has been carried out")
    listed = await list_suspended(connection, payment_id=request.payment_id, limit=SUSPENDED_MAX)
    currency = next((one.money.currency for one in listed if one.transfer_id == document.transfer_id), None)
    if currency is not None:
        await lock_balances(connection, request.merchant_id, currency)
        listed = await list_suspended(connection, payment_id=request.payment_id, limit=SUSPENDED_MAX)  # under the lock
    found = next((one for one in listed if one.transfer_id == document.transfer_id), None)
    if found is None:
        raise Conflict("this money is no longer in suspense")
    moved = _from_suspense(request, document, found)
    await post(connection, request.merchant_id, moved, now=now, payment_id=found.payment_id)
    return found


async def _end_moved(context: Psps, connection: Connection, request: OperatorRequest, result: str) -> Done:
    """End the request with what was posted, in the caller's transaction."""
    await end_request(connection, request, RequestState.DONE, result, now=context.now())
    left = await list_suspended(connection, payment_id=request.payment_id, limit=1)
    await _close_findings(connection, request, () if left else (Finding.EVIDENCE_MISMATCH,))
    return Done(result)


def _from_suspense(request: OperatorRequest, document: MoveSuspense, found: Suspended) -> Transfer:
    if document.to == "wallet":
        kind, account = TransferKind.SUSPENSE_CREDIT, WalletKind.AVAILABLE.value
    else:
        kind, account = TransferKind.SUSPENSE_RETURN, found.receivable
    amounts = {SUSPENSE: -found.money.amount_minor, account: found.money.amount_minor}
    return transfer(request.id, kind, found.money.currency, **amounts)


async def _adjust(context: Psps, request: OperatorRequest, document: Adjust) -> Done:
    money = Money(document.amount_minor, document.currency)
    async with context.pool.connection() as connection, connection.atomic():
        if not await lock_request(connection, request):
            raise Conflict("this has been carried out")
        balances = await lock_balances(connection, request.merchant_id, document.currency)
        left = balances.available_minor + document.amount_minor
        if document.amount_minor < 0 and left < -balances.negative_limit_minor:
            available = Money(balances.available_minor, document.currency)
            raise Conflict(f"only {available} is available", code="insufficient_balance")
        amounts = {
            WalletKind.AVAILABLE.value: document.amount_minor,
            ADJUSTMENT_ACCOUNTS[document.account]: -document.amount_minor,
        }
        now = context.now()
        adjusted = transfer(request.id, TransferKind.ADJUSTMENT, document.currency, **amounts)
        await post(connection, request.merchant_id, adjusted, now=now, payment_id=request.payment_id)
        result = f"adjusted by {money}"
        await end_request(connection, request, RequestState.DONE, result, now=now)
        await _tell_adjustment(connection, request, money, account=document.account, now=now)
    return Done(result)


async def _tell_adjustment(
    connection: Connection, request: OperatorRequest, money: Money, *, account: str, now: datetime
) -> None:
    document = resources.Adjustment.of(
        request.id, money=money, account=account, reason=request.reason, payment_id=request.payment_id, created_at=now
    )
    await append_event(
        connection,
        request.merchant_id,
        EventId(uuid7()),
        event_type="adjustment.created",
        data=msgspec.json.encode(document),
        now=now,
    )
