"""Carries out what operators have asked for and another one has approved, in a worker, through the flows of payments.

Carrying out a request twice changes nothing: evidence is idempotent, a refund has the request's id, and what posts by itself does
so in the transaction that ends the request. So a worker that dies in between leaves nothing half done.
"""

from datetime import datetime
from typing import assert_never
from uuid import UUID

import msgspec

from core.errors import Conflict, DomainError, Overloaded, RequestError
from core.evidence import Evidence, EvidenceKind, Finding, Source
from core.findings import MENDED_BY_OUTCOME
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
from core.payment import Payment, Status, evidence_about
from server import resources
from server.db.connection import Connection
from server.db.events.events import append_event
from server.db.ledger.postings import post
from server.db.ledger.suspense import Suspended, list_suspended, suspense_minor
from server.db.operators.requests import OperatorRequest, RequestState, end_request, lock_request
from server.db.payments.balance_locked import lock_balances
from server.db.payments.findings import close_findings, has_transfer
from server.db.payments.payments import find_payment
from server.db.payments.refunds import find_refund
from server.flows.contexts import Psps
from server.flows.operators.requests import captured_minor, is_large_refund
from server.flows.payments.refund import accept, send
from server.flows.payments.settle import settle, settle_refund
from server.uuid7 import uuid7

SUSPENDED_MAX = 1_000


async def carry_out(context: Psps, request: OperatorRequest, *, refund_approval_minor: int) -> None:
    """Carry out an approved request, and record its end. Raises `DatabaseUnavailable`, `Overloaded`, `PspError`: try again.

    What needs an approval is judged again here, by this worker's settings and the payment as it is now.
    """
    try:
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
        await _end(context, request, RequestState.FAILED, str(error))
    else:
        await _end(context, request, RequestState.DONE, done)


def _require_approval(request: OperatorRequest, *, needed: bool) -> None:
    if needed and request.approved_by is None:
        raise Conflict("this needs the approval of another operator by now: ask for it again", code="not_approved")


async def _end(context: Psps, request: OperatorRequest, state: RequestState, result: str) -> None:
    async with context.pool.connection() as connection, connection.atomic():
        if await end_request(connection, request, state, result, now=context.now()):
            await _close_findings(connection, request, state)


async def _close_findings(connection: Connection, request: OperatorRequest, state: RequestState) -> None:
    """Mark the findings as fixed that a request has mended."""
    if state is not RequestState.DONE or request.payment_id is None:
        return
    kinds: tuple[Finding, ...] = ()
    match request.document:
        case ResolvePayment() | ResolveRefund():
            kinds = MENDED_BY_OUTCOME
        case MoveSuspense():
            left = await list_suspended(connection, payment_id=request.payment_id, limit=1)
            kinds = () if left else (Finding.EVIDENCE_MISMATCH,)
        case RefundPayment():
            kinds = (Finding.LATE_REFUND_FAILED,)
    await close_findings(
        connection, request.merchant_id, request.payment_id, kinds, operator=request.operators, note=request.reason
    )


async def _payment(context: Psps, request: OperatorRequest, payment_id: PaymentId | None) -> Payment:
    async with context.pool.connection() as connection:
        found = await find_payment(connection, request.merchant_id, payment_id) if payment_id is not None else None
    if found is None:
        raise Conflict("the payment does not exist")
    return found


async def _resolve_payment(context: Psps, request: OperatorRequest, document: ResolvePayment) -> str:
    payment = await _payment(context, request, request.payment_id)
    is_captured = document.outcome == "captured"
    if (payment.status is Status.SUCCEEDED) == is_captured and payment.is_operators_word:
        return f"{payment.public_id} is {payment.status}"
    _require_approval(request, needed=payment.status is Status.SUCCEEDED and payment.is_operators_word)
    word = _word(payment, is_captured=is_captured, reference=document.reference)
    settled = await settle(context, payment.merchant_id, payment.id, word, known=payment, only_if_unchanged=True)
    assert settled is not None
    if not settled.changed:
        raise Overloaded("the payment has changed meanwhile")  # and is looked at again
    return f"{payment.public_id} is {settled.payment.status}"


def _word(payment: Payment, *, is_captured: bool, reference: str | None) -> Evidence:
    kind = EvidenceKind.CAPTURED if is_captured else EvidenceKind.CANCELED
    money = Money(captured_minor(payment), payment.money.currency) if is_captured else None
    evidence = evidence_about(payment, kind, Source.OPERATOR, money=money)
    return msgspec.structs.replace(evidence, reference=reference)


async def _resolve_refund(context: Psps, request: OperatorRequest, document: ResolveRefund) -> str:
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
    return f"{refund.public_id} is {refund.status}"


async def _refund(context: Psps, request: OperatorRequest, document: RefundPayment, limit_minor: int) -> str:
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
    return f"{sent.refund.public_id} is {sent.refund.status}"


async def _move_suspense(context: Psps, request: OperatorRequest, document: MoveSuspense) -> str:
    other: Payment | None = None
    if document.to == "payment":
        other = await _payment(context, request, PaymentId(document.payment_id) if document.payment_id else None)
    async with context.pool.connection() as connection, connection.atomic():
        if not await lock_request(connection, request):
            return request.result or "done"
        found = await _suspended(connection, request, document.transfer_id)
        if other is not None:
            _require_fit(other, found)
        await lock_balances(connection, request.merchant_id, found.money.currency)
        moved = _from_suspense(request, document, found)
        now, result = context.now(), f"{found.money} went from suspense to {moved.postings[1].account}"
        if not await has_transfer(connection, request.merchant_id, moved):
            if await suspense_minor(connection, found) < found.money.amount_minor:
                raise Conflict("this money is no longer in suspense")
            await post(connection, request.merchant_id, moved, now=now, payment_id=found.payment_id)
        if other is None:
            await end_request(connection, request, RequestState.DONE, result, now=now)
            await _close_findings(connection, request, RequestState.DONE)
        if document.to == "wallet":
            await _tell_adjustment(connection, request, found.money, account="suspense", now=now)
    if other is not None:
        await settle(context, other.merchant_id, other.id, _word(other, is_captured=True, reference=document.reference))
        result = f"{other.public_id} is SUCCEEDED with {found.money} from suspense"
    return result


def _from_suspense(request: OperatorRequest, document: MoveSuspense, found: Suspended) -> Transfer:
    if document.to == "wallet":
        kind, account = TransferKind.SUSPENSE_CREDIT, WalletKind.AVAILABLE.value
    else:
        kind, account = TransferKind.SUSPENSE_RETURN, found.receivable
    amounts = {SUSPENSE: -found.money.amount_minor, account: found.money.amount_minor}
    return transfer(request.id, kind, found.money.currency, **amounts)


async def _suspended(connection: Connection, request: OperatorRequest, transfer_id: UUID) -> Suspended:
    listed = await list_suspended(connection, payment_id=request.payment_id, limit=SUSPENDED_MAX)
    found = next((one for one in listed if one.transfer_id == transfer_id), None)
    if found is None:
        raise Conflict("this money is no longer in suspense")
    return found


def _require_fit(payment: Payment, suspended: Suspended) -> None:
    if payment.money.currency != suspended.money.currency or captured_minor(payment) != suspended.money.amount_minor:
        raise Conflict(f"{suspended.money} is not what {payment.public_id} is about, {payment.money}: credit it to the wallet")


async def _adjust(context: Psps, request: OperatorRequest, document: Adjust) -> str:
    money = Money(document.amount_minor, document.currency)
    async with context.pool.connection() as connection, connection.atomic():
        if not await lock_request(connection, request):
            return request.result or "done"
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
    return result


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
