"""What merchants are told: the event of a change, if it is one that concerns them.

An event is made once, in the transaction of its change; a merchant that receives it twice sees the same id and sequence number.
"""

from collections.abc import Sequence

from core.errors import Unprocessable
from core.evidence import EvidenceKind
from core.payment import Change, Status
from core.refund import RefundStatus

API_VERSION = "2026-11-01"
"""Of what merchants are sent and answered; said in every event, so that a reader knows what it reads."""

ENDPOINT_DISABLED = "webhook_endpoint.disabled"
ENDPOINT_TEST = "webhook_endpoint.test"

EVENT_TYPES = {
    "payment.authorized": "The amount is reserved: capture or cancel it before `capture_before`.",
    "payment.succeeded": "The money was taken. `late` says that it came after the payment had been given up.",
    "payment.declined": "The customer's bank, or the PSP, refused for good; `decline_code` says why.",
    "payment.expired": "The customer has not paid in time; the page is closed.",
    "payment.canceled": "Canceled by you or by the PSP, or never begun; nothing was taken.",
    "payment.authorization_expiring": "The authorization ends within a day and is not captured yet.",
    "payment.disputed": "The customer has disputed the payment with his bank; the money was taken back for now.",
    "payment.dispute_won": "The dispute was decided for you; the money is yours again.",
    "payment.dispute_lost": "The dispute was decided for the customer.",
    "refund.succeeded": "The refund is on its way to the customer.",
    "refund.failed": "The refund did not go through; the money is yours again.",
    ENDPOINT_DISABLED: "One of your webhook endpoints gets no more events: it answered 410, or failed for five days.",
    ENDPOINT_TEST: "You asked for a test of a webhook endpoint.",
}
"""The catalogue: every type of event, and what it tells."""

_FAMILIES = frozenset(f"{name.partition('.')[0]}.*" for name in EVENT_TYPES)
TYPES_MAX = 32

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


def parse_types(types: Sequence[str], *, path: str) -> tuple[str, ...] | None:
    """A filter by type: names of the catalogue or families like `payment.*`; None where it lets everything through.

    Raises `Unprocessable` for a type that there is not, because nothing would ever come.
    """
    if len(types) > TYPES_MAX:
        raise Unprocessable(f"a filter names at most {TYPES_MAX} types", code="invalid_event_type", path=path)
    for one in types:
        if one != "*" and one not in EVENT_TYPES and one not in _FAMILIES:
            detail = f"there is no event type {one[:60]!r}: see /docs#events; a whole family is like payment.*"
            raise Unprocessable(detail, code="invalid_event_type", path=path)
    return None if not types or "*" in types else tuple(dict.fromkeys(types))


def is_wanted(event_type: str, types: Sequence[str] | None) -> bool:
    """Whether a filter lets an event through; None is no filter."""
    return types is None or event_type in types or f"{event_type.partition('.')[0]}.*" in types
