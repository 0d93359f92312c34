"""Payments and refunds as merchants see them."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from core import payment as domain
from core import refund as refunds
from core.ids import PAYMENT, REFUND, encode_id
from server.resources.times import Time

PaymentStatus = Literal["PENDING", "AUTHORIZED", "SUCCEEDED", "DECLINED", "EXPIRED", "CANCELED", "UNKNOWN"]


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment. Amounts are in minor units: 1999 EUR is 19.99 €. `success` is 1 if the status is SUCCEEDED, else 0.

    `awaiting` says who has to act in PENDING and UNKNOWN: the customer, at `payment_url`, or the payment provider, whose answer
    is still to come; with a `decline_code` it is the confirmation of a decline.
    """

    id: str
    object: Literal["payment"]
    status: PaymentStatus
    awaiting: Literal["customer", "provider"] | None
    success: Literal[0, 1]
    amount: int
    currency: str
    captured_amount: int
    refunded_amount: int
    disputed_amount: int
    fee_amount: int
    capture: Literal["automatic", "manual"]
    capture_before: Time | None
    pending_operation: str | None
    order_id: str
    description: str | None
    statement_descriptor: str | None
    metadata: Mapping[str, str]
    payment_url: str | None
    return_url: str | None
    decline_code: str | None
    did_check_again: bool
    late: bool
    risk: str | None
    expires_at: Time
    created_at: Time
    updated_at: Time

    @classmethod
    def of(cls, payment: domain.Payment) -> "Payment":
        """The document of a payment."""
        return cls(
            id=encode_id(PAYMENT, payment.id),
            object="payment",
            status=payment.status.value,
            awaiting=_awaited(payment),
            success=int(payment.status is domain.Status.SUCCEEDED),  # type: ignore[arg-type]
            amount=payment.money.amount_minor,
            currency=payment.money.currency,
            captured_amount=payment.captured_minor,
            refunded_amount=payment.refunded_minor,
            disputed_amount=payment.disputed_minor + payment.lost_minor,
            fee_amount=payment.terms.fee_minor(payment.captured_minor),
            capture=payment.capture.value,
            capture_before=payment.capture_before,
            pending_operation=payment.pending.kind.value if payment.pending is not None else None,
            order_id=payment.order_id,
            description=payment.description,
            statement_descriptor=payment.statement_descriptor,
            metadata=payment.metadata,
            payment_url=payment.payment_url,
            return_url=payment.return_url,
            decline_code=payment.decline_code,
            did_check_again=payment.did_check_again,
            late=payment.late,
            risk=payment.risk.value if payment.risk is not None else None,
            expires_at=payment.expires_at,
            created_at=payment.created_at,
            updated_at=payment.updated_at,
        )


def _awaited(payment: domain.Payment) -> Literal["customer", "provider"] | None:
    if payment.status not in domain.UNSETTLED:
        return None
    is_the_customer = payment.payment_url is not None and not domain.is_provisionally_declined(payment)
    return "customer" if is_the_customer and payment.status is domain.Status.PENDING else "provider"


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """A refund of a payment."""

    id: str
    object: Literal["refund"]
    payment_id: str
    status: Literal["PENDING", "SUCCEEDED", "FAILED", "UNKNOWN"]
    amount: int
    currency: str
    reason: str | None
    failure_code: str | None
    created_at: Time
    updated_at: Time

    @classmethod
    def of(cls, refund: refunds.Refund) -> "Refund":
        """The document of a refund."""
        return cls(
            id=encode_id(REFUND, refund.id),
            object="refund",
            payment_id=encode_id(PAYMENT, refund.payment_id),
            status=refund.status.value,
            amount=refund.money.amount_minor,
            currency=refund.money.currency,
            reason=refund.reason,
            failure_code=refund.failure_code,
            created_at=refund.created_at,
            updated_at=refund.updated_at,
        )
