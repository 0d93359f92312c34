"""The events that merchants receive, and which changes of a payment make one.

An event is written in the transaction of its change. A merchant that receives it twice sees the same id and sequence number.
"""

from collections.abc import Sequence

from core.errors import Unprocessable
from core.evidence import EvidenceKind
from core.payment import Change, Status
from core.refund import RefundStatus

UNKNOWN_CHECKS = 3
"""The fetches in vain after which a merchant is told that an outcome is unknown: it has been so for about three minutes."""

API_VERSION = "2026-11-01"
"""The version of the API's documents. Every event carries it."""

ENDPOINT_DISABLED = "webhook_endpoint.disabled"
ENDPOINT_TEST = "webhook_endpoint.test"
KEY_EXPIRING = "api_key.expiring"

EVENT_TYPES = {
    "payment.authorized": "The amount is reserved. Capture or cancel it before `capture_before`.",
    "payment.succeeded": "The money was taken. With `late` it came after the payment had expired or been canceled.",
    "payment.declined": "The customer's bank or the PSP refused for good; `decline_code` says why.",
    "payment.expired": "The customer did not pay in time. The payment page is closed.",
    "payment.canceled": "Canceled by you or by the PSP, or never begun. Nothing was taken.",
    "payment.authorization_expiring": "The authorization ends within a day and has not been captured.",
    "payment.disputed": "The customer disputed the payment with their bank. The money is withheld for now.",
    "payment.dispute_won": "The dispute was decided in your favor. The money is yours again.",
    "payment.dispute_lost": "The dispute was decided in the customer's favor.",
    "refund.succeeded": "The refund is on its way to the customer.",
    "refund.failed": "The refund failed. The money is yours again.",
    "payment.outcome_unknown": "The PSP has not told the outcome for some minutes. It will be settled; do not charge again.",
    "adjustment.created": "Your available balance was changed for a reason that `reason` tells.",
    "payout.created": "Money was set aside for a payout to your bank.",
    "payout.succeeded": "Your bank has the money.",
    "payout.failed": "The payout failed or was returned. The money is yours again.",
    "batch.completed": "Every item of the batch has a result.",
    "batch.timed_out": "The batch's deadline passed before all items had a result.",
    "batch.stopped": "You have stopped the batch before all items had a result.",
    KEY_EXPIRING: "One of your API keys expires within a week.",
    ENDPOINT_DISABLED: "One of your webhook endpoints was disabled: it answered 410, or failed for five days.",
    ENDPOINT_TEST: "You asked for a test of a webhook endpoint.",
}
"""The catalogue: every event type with its description."""

_FAMILIES = frozenset(f"{name.partition('.')[0]}.*" for name in EVENT_TYPES)
TYPES_MAX = 32

EVENT_TYPE_BY_STATUS = {
    Status.AUTHORIZED: "payment.authorized",
    Status.SUCCEEDED: "payment.succeeded",
    Status.DECLINED: "payment.declined",
    Status.EXPIRED: "payment.expired",
    Status.CANCELED: "payment.canceled",
}
"""The event type of each status that makes an event. The doctor relies on these names: `payment.` and the status in lower
case.
"""
assert all(name == f"payment.{status.lower()}" for status, name in EVENT_TYPE_BY_STATUS.items())

_EVENT_TYPE_BY_KIND = {
    EvidenceKind.EXPIRING: "payment.authorization_expiring",
    EvidenceKind.DISPUTED: "payment.disputed",
    EvidenceKind.DISPUTE_WON: "payment.dispute_won",
    EvidenceKind.DISPUTE_LOST: "payment.dispute_lost",
}

_EVENT_TYPE_BY_REFUND_STATUS = {RefundStatus.SUCCEEDED: "refund.succeeded", RefundStatus.FAILED: "refund.failed"}


def event_type_of(change: Change) -> str | None:
    """The type of the event that a change makes, or None if the change does not concern the merchant.

    PENDING and UNKNOWN are not final and make no event.
    """
    before, after = change.before, change.after
    if after.status is not before.status:
        return EVENT_TYPE_BY_STATUS.get(after.status)
    if change.refund is not None:
        is_same = change.refund_before is None or change.refund_before.status is change.refund.status
        return None if is_same else _EVENT_TYPE_BY_REFUND_STATUS.get(change.refund.status)
    if after.status is Status.UNKNOWN and before.checks < UNKNOWN_CHECKS == after.checks:
        return "payment.outcome_unknown"
    return None if change.is_mismatch else _EVENT_TYPE_BY_KIND.get(change.evidence.kind)


def parse_types(types: Sequence[str], *, path: str) -> tuple[str, ...] | None:
    """Parse a filter: names of the catalogue or families like `payment.*`. Returns None for a filter that matches everything.

    Raises `Unprocessable` for an unknown type, because no event would ever match it.
    """
    if len(types) > TYPES_MAX:
        raise Unprocessable(f"a filter may name at most {TYPES_MAX} types", code="invalid_event_type", path=path)
    for one in types:
        if one != "*" and one not in EVENT_TYPES and one not in _FAMILIES:
            detail = f"there is no event type {one[:60]!r}: /docs#events lists them, and payment.* selects a family"
            raise Unprocessable(detail, code="invalid_event_type", path=path)
    return None if not types or "*" in types else tuple(dict.fromkeys(types))


def is_wanted(event_type: str, types: Sequence[str] | None) -> bool:
    """Return whether a filter matches an event type. None matches everything."""
    return types is None or event_type in types or f"{event_type.partition('.')[0]}.*" in types
