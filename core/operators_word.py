"""The word of operators about a payment whose outcome the PSP has not told, and what the PSP's own word makes of it.

An operator's word is evidence of source OPERATOR: CAPTURED or CANCELED, or the end of a refund. It counts only where the PSP has
not spoken. When the PSP speaks later, the payment becomes what it would be without the operators, the ledger follows, and a
finding says so if that is something else. Invariants: the same words of the PSP lead to the same books, whatever operators have
said in between; each charge by an operator's word, and its reversal, has an id of its own, derived from the payment's version.
"""

from datetime import datetime

from msgspec.structs import replace

from core.errors import IllegalTransition
from core.evidence import FETCHED, Evidence, EvidenceKind
from core.payment import UNSETTLED, Change, Payment, Status, captured
from core.refund import Refund, RefundStatus
from core.schedule import due_at

FROM_SUSPENSE = "from_suspense"
"""The code of a word that assigns money from suspense to a payment."""

NOT_REFUNDED = "not_refunded"
"""The failure code of a refund that the PSP never made, by an operator's word."""

_ENDS = frozenset(
    {
        EvidenceKind.CAPTURED,
        EvidenceKind.DECLINED,
        EvidenceKind.EXPIRED,
        EvidenceKind.CANCELED,
        EvidenceKind.REJECTED,
        EvidenceKind.UNREACHABLE,
    }
)
_OPEN_STATES = frozenset({EvidenceKind.OPENED, EvidenceKind.AUTHORIZED})


def may_be_resolved(payment: Payment) -> bool:
    """Return whether an operator's word counts: the outcome is unknown, or operators have told it."""
    is_given_up = payment.due_at is None and (
        payment.status in UNSETTLED or (payment.status is Status.AUTHORIZED and payment.pending is not None)
    )
    return payment.status is Status.UNKNOWN or is_given_up or payment.is_operators_word


def resolve(payment: Payment, evidence: Evidence, *, now: datetime) -> Change | None:
    """The change that an operator's word makes to a payment, or None if it says nothing new.

    Raises `IllegalTransition` where the PSP's own word stands, or refunds and disputes do.
    """
    is_captured = evidence.kind is EvidenceKind.CAPTURED
    if not is_captured and evidence.kind is not EvidenceKind.CANCELED:
        raise IllegalTransition(f"an operator cannot say that a payment is {evidence.kind}")
    if not may_be_resolved(payment):
        raise IllegalTransition(f"this payment is {payment.status} by the payment provider's own word, which stands")
    if payment.is_operators_word and (payment.status is Status.SUCCEEDED) == is_captured:
        return None
    if not is_captured and has_followed_up(payment):
        raise IllegalTransition("this payment has refunds or disputes, so it was charged")
    if payment.pending is not None and payment.pending.amount_minor not in (None, payment.money.amount_minor):
        # Its amount would be forgotten, and could not be compared with what the PSP tells.
        raise IllegalTransition("a part of this payment is being captured, of which only the payment provider can tell the end")
    was = unresolved(payment) if payment.is_operators_word else payment
    if is_captured:
        assert evidence.money is not None
        step = captured(was, evidence.money.amount_minor, now=now)
    else:
        step = replace(was, status=Status.CANCELED, captured_minor=0)
    step = replace(
        step,
        is_operators_word=True,
        from_suspense=is_captured and evidence.code == FROM_SUSPENSE,
        suspended=step.suspended or payment.from_suspense,
        pending=None,
        version=payment.version + 1,
        updated_at=now,
    )
    after = replace(step, due_at=due_at(step, evidence.kind, reference=step.reference, now=now))
    return Change(before=payment, after=after, evidence=evidence)


def unresolved(payment: Payment) -> Payment:
    """The payment as it was before operators said anything about it."""
    status = Status.AUTHORIZED if payment.capture_before is not None else Status.UNKNOWN
    return replace(
        payment,
        status=status,
        captured_minor=0,
        late=False,
        release_at=None,
        checks=0,
        pending_taken_minor=0,
        fee_returned_minor=0,
        suspended=payment.suspended or payment.from_suspense,  # the money goes back there
        is_operators_word=False,
        from_suspense=False,
    )


def is_overruled(payment: Payment, evidence: Evidence) -> bool:
    """Return whether evidence is the PSP's own word on a payment that operators have resolved."""
    if not payment.is_operators_word:
        return False
    is_seen = evidence.source in FETCHED
    if payment.status is not Status.SUCCEEDED:
        return evidence.kind in _ENDS and evidence.kind is not EvidenceKind.DECLINED  # which the customer may have mended since
    if evidence.kind is EvidenceKind.DECLINED:
        return is_seen or payment.capture_before is None  # of an authorized payment, a told decline is old news
    return evidence.kind in _ENDS or (evidence.kind in _OPEN_STATES and is_seen)


def has_followed_up(payment: Payment) -> bool:
    """Return whether refunds or disputes rest on the payment's charge."""
    return bool(payment.refunded_minor or payment.disputed_minor or payment.lost_minor)


def resolve_refund(refund: Refund, evidence: Evidence) -> Refund:
    """A refund after an operator's word. Raises `IllegalTransition` where the PSP's own word stands."""
    if not refund.is_open:
        raise IllegalTransition(f"this refund is {refund.status} already")
    if refund.is_accepted:
        raise IllegalTransition("the payment provider has accepted this refund, and will tell its end")
    if evidence.kind is EvidenceKind.REFUND_SUCCEEDED:
        return replace(refund, status=RefundStatus.SUCCEEDED, is_accepted=True, is_operators_word=True)
    if evidence.kind is EvidenceKind.REFUND_FAILED:
        return replace(refund, status=RefundStatus.FAILED, failure_code=evidence.code or NOT_REFUNDED, is_operators_word=True)
    raise IllegalTransition(f"an operator cannot say that a refund is {evidence.kind}")


def is_made_after_all(refund: Refund, evidence: Evidence) -> bool:
    """Return whether the PSP has made a refund that failed by an operator's word."""
    is_made = evidence.kind in (EvidenceKind.REFUND_SUCCEEDED, EvidenceKind.REFUND_PENDING)
    return refund.is_operators_word and refund.status is RefundStatus.FAILED and is_made
