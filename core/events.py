"""What merchants are told: the event of a change, if it is one that concerns them.

An event is made once, in the transaction of its change; a merchant that receives it twice sees the same id and sequence number.
"""

from core.ids import PAYMENT, encode_id
from core.payment import Change, Payment, Status

EVENT_TYPE_BY_STATUS = {
    Status.AUTHORIZED: "payment.authorized",
    Status.SUCCEEDED: "payment.succeeded",
    Status.DECLINED: "payment.declined",
    Status.EXPIRED: "payment.expired",
    Status.CANCELED: "payment.canceled",
}


def event_type_of(change: Change) -> str | None:
    """The type of the event that a change makes, or None where the merchant sees no difference.

    PENDING and UNKNOWN are not final and make no event: the merchant hears when something is settled.
    """
    if change.after.status is change.before.status:
        return None
    return EVENT_TYPE_BY_STATUS.get(change.after.status)


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
        "refunded_amount": 0,
        "order_id": payment.order_id,
        "description": payment.description,
        "payment_url": payment.payment_url,
        "return_url": payment.return_url,
        "decline_code": payment.decline_code,
        "did_check_again": payment.did_check_again,
        "late": payment.late,
        "expires_at": payment.expires_at,
        "created_at": payment.created_at,
        "updated_at": payment.updated_at,
    }
