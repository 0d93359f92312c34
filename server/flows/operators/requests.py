"""Asks for money to be moved, and approves what another operator has asked for; each audited in its own transaction."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from core.errors import Conflict, NotFound
from core.ids import OPERATOR_REQUEST, PAYMENT, MerchantId, PaymentId, encode_id
from core.operator_requests import Document, ResolvePayment
from core.operators import Operator
from core.operators_word import has_followed_up, may_be_resolved
from core.payment import Payment, Status
from server.db.alerts import Alert, note_alert
from server.db.connection import Connection
from server.db.merchants.audit import Act, record_act
from server.db.operators.requests import (
    OperatorRequest,
    add_request,
    approve_request,
    expire_requests,
    withdraw_request,
)
from server.db.payments.payments import find_owner, find_payment
from server.uuid7 import uuid7

EXPIRED_AT_ONCE_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A wish of an operator, about a merchant and perhaps one of its payments. `act` is its name in the table of rights."""

    act: str
    merchant_id: MerchantId
    document: Document
    reason: str
    summary: str
    payment_id: PaymentId | None = None


async def ask(connection: Connection, asked: Asked, operator: Operator, *, now: datetime) -> OperatorRequest:
    """Store a request and its audit entry."""
    request_id = uuid7()
    async with connection.atomic():
        made = await add_request(
            connection,
            asked.merchant_id,
            request_id,
            asked.document,
            payment_id=asked.payment_id,
            reason=asked.reason,
            operator=operator,
            now=now,
        )
        detail = f"{asked.summary}: {asked.reason}"
        await record_act(connection, _act(made, operator, asked.act, detail, now))
    return made


async def approve(connection: Connection, found: OperatorRequest, operator: Operator, *, now: datetime) -> None:
    """Approve a request. Raises `Conflict` if it is no longer open, or for the operator who made it."""
    async with connection.atomic():
        if not await approve_request(connection, found, operator, now=now):
            raise Conflict(f"this request is no longer open: it is {found.state}", code="not_approvable")
        await record_act(connection, _act(found, operator, "request.approve", found.reason, now))


async def withdraw(connection: Connection, found: OperatorRequest, operator: Operator, reason: str, *, now: datetime) -> None:
    """Withdraw a request, or refuse it. Raises `Conflict` if it is no longer open."""
    async with connection.atomic():
        if not await withdraw_request(connection, found, result=f"{operator.name}: {reason}", now=now):
            raise Conflict(f"this request is no longer open: it is {found.state}", code="not_withdrawable")
        await record_act(connection, _act(found, operator, "request.withdraw", reason, now))


async def expire(connection: Connection) -> None:
    """End the requests that nobody has approved in time, with an alert and an audit entry for each."""
    async with connection.atomic():
        for one in await expire_requests(connection, limit=EXPIRED_AT_ONCE_MAX):
            name = encode_id(OPERATOR_REQUEST, one.id)
            alert = Alert(
                merchant_id=one.merchant_id,
                key=f"operator_request_expired:{name}",
                kind="operator_request",
                title=f"{name} of {one.requested_by_name} has expired: nobody approved it within {_days(one)} days",
                detail=f"Nothing was done. Its reason: {one.reason}. Make it again if it is still wanted.",
            )
            await note_alert(connection, alert, now=one.updated_at)
            await record_act(connection, _act(one, None, "request.expire", one.reason, one.updated_at))


async def find_resolvable(connection: Connection, payment_id: UUID) -> Payment:
    """The payment of an id that an operator gave. Raises `NotFound`."""
    owner = await find_owner(connection, payment_id)
    payment = await find_payment(connection, owner, PaymentId(payment_id)) if owner is not None else None
    if payment is None:
        raise NotFound(f"there is no payment {encode_id(PAYMENT, payment_id)} in this database")
    return payment


def require_resolvable(payment: Payment, document: ResolvePayment) -> None:
    """Raise `Conflict` where an operator's word on a payment would not count, before anything is asked for."""
    if not may_be_resolved(payment):
        detail = f"{payment.public_id} is {payment.status} by the payment provider's own word, which stands"
        raise Conflict(detail, code="not_resolvable")
    if document.outcome == "not_charged" and has_followed_up(payment):
        raise Conflict("this payment has refunds or disputes, so it was charged", code="not_resolvable")
    if payment.is_operators_word and (payment.status is Status.SUCCEEDED) == (document.outcome == "captured"):
        raise Conflict(f"{payment.public_id} is {payment.status} already", code="not_resolvable")


def is_large_refund(payment: Payment, amount_minor: int, limit_minor: int) -> bool:
    """Return whether a refund by an operator needs another one: several small ones count together."""
    return payment.refunded_minor + amount_minor > limit_minor


def captured_minor(payment: Payment) -> int:
    """The amount that the PSP holds if it has captured a payment: that of a capture under way, else all."""
    pending = payment.pending
    return pending.amount_minor if pending is not None and pending.amount_minor is not None else payment.money.amount_minor


def _days(request: OperatorRequest) -> int:
    return (request.expires_at - request.created_at) // timedelta(days=1)


def _act(request: OperatorRequest, operator: Operator | None, action: str, detail: str, now: datetime) -> Act:
    """The audit entry of an act on a request; without an operator it is Florin's own."""
    return Act(
        id=uuid7(),
        merchant_id=request.merchant_id,
        actor=operator.name if operator is not None else "florin",
        action=action,
        detail=detail,
        at=now,
        operator_id=operator.id if operator is not None else None,
        payment_id=request.payment_id,
        subject=encode_id(OPERATOR_REQUEST, request.id),
    )
