"""What merchants are told: the event of a change, if it is one that concerns them.

An event is made once, in the transaction of its change; a merchant that receives it twice sees the same id and sequence number.
"""

from core.evidence import EvidenceKind
from core.ids import PAYMENT, REFUND, encode_id
from core.payment import Change, Payment, Status
from core.refund import Refund, RefundStatus

EVENT_TYPE_BY_STATUS = {
    Status.AUTHORIZED: "payment.authorized",
    Status.SUCCEEDED: "payment.succeeded",
    Status.DECLINED: "payment.declined",
    Status.EXPIRED: "payment.expired",
    Status.CANCELED: "payment.canceled",
}

_EVENT_TYPE_BY_KIND = {
    EvidenceKind.EXPIRING: "payment.authorization_expiring",
    EvidenceKind.DISPUTED: "payment.disputed",
    EvidenceKind.DISPUTE_WON: "payment.dispute_won",
    EvidenceKind.DISPUTE_LOST: "payment.dispute_lost",
}

_EVENT_TYPE_BY_REFUND_STATUS = {RefundStatus.SUCCEEDED: "refund.succeeded", RefundStatus.FAILED: "refund.failed"}


def event_type_of(change: Change) -> str | None:
    """The type of the event that a change makes, or None where the merchant sees no difference.

    PENDING and UNKNOWN are not final and make no event: the merchant hears when something is settled.
    """
    if change.after.status is not change.before.status:
        return EVENT_TYPE_BY_STATUS.get(change.after.status)
    if change.refund is not None:
        is_same = change.refund_before is None or change.refund_before.status is change.refund.status
        return None if is_same else _EVENT_TYPE_BY_REFUND_STATUS.get(change.refund.status)
    return None if change.is_mismatch else _EVENT_TYPE_BY_KIND.get(change.evidence.kind)


def payment_data(payment: Payment) -> dict[str, object]:
    """A payment as merchants see it, in events and in the API; amounts in minor units, times in UTC."""
    return {
        "id": encode_id(PAYMENT, payment.id),
        "object": "payment",
        "status": payment.status.value,
        "success": int(payment.status is Status.SUCCEEDED),
        "amount": payment.money.amount_minor,
        "currency": payment.money.currency,
        "captured_amount": payment.captured_minor,
        "refunded_amount": payment.refunded_minor,
        "disputed_amount": payment.disputed_minor + payment.lost_minor,
        "fee_amount": payment.terms.fee_minor(payment.captured_minor),
        "capture": payment.capture.value,
        "capture_before": payment.capture_before,
        "pending_operation": payment.pending.kind.value if payment.pending else None,
        "order_id": payment.order_id,
        "description": payment.description,
        "statement_descriptor": payment.statement_descriptor,
        "metadata": payment.metadata,
        "payment_url": payment.payment_url,
        "return_url": payment.return_url,
        "decline_code": payment.decline_code,
        "did_check_again": payment.did_check_again,
        "late": payment.late,
        "risk": payment.risk.value if payment.risk else None,
        "expires_at": payment.expires_at,
        "created_at": payment.created_at,
        "updated_at": payment.updated_at,
    }


def refund_data(refund: Refund) -> dict[str, object]:
    """A refund as merchants see it."""
    return {
        "id": encode_id(REFUND, refund.id),
        "object": "refund",
        "payment_id": encode_id(PAYMENT, refund.payment_id),
        "status": refund.status.value,
        "amount": refund.money.amount_minor,
        "currency": refund.money.currency,
        "reason": refund.reason,
        "failure_code": refund.failure_code,
        "created_at": refund.created_at,
        "updated_at": refund.updated_at,
    }
