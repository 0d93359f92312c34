"""Checks that evidence belongs to the payment it names, and makes the change for evidence that does not."""

from datetime import datetime

from msgspec.structs import replace

from core.evidence import DISPUTES, FETCHED, Evidence, EvidenceKind, Finding
from core.money import AMOUNT_MINOR_MAX
from core.payment import FINAL, Change, Payment


def matches(payment: Payment, evidence: Evidence) -> bool:
    """Return whether account, operation, reference, currency and amount of the evidence are the payment's own."""
    if evidence.psp_account_id != payment.psp_account_id or evidence.operation_id != payment.operation_id:
        return False
    if evidence.kind in DISPUTES:
        return _is_possible_dispute(payment, evidence)
    if evidence.reference is not None and payment.reference is not None and evidence.reference != payment.reference:
        return False
    return evidence.money is None or (
        evidence.money.currency == payment.money.currency and evidence.money.amount_minor == _expected_minor(payment, evidence)
    )


def _expected_minor(payment: Payment, evidence: Evidence) -> int:
    """The amount of the operation that the evidence concerns."""
    assert evidence.money is not None
    match evidence.kind:
        case EvidenceKind.CAPTURE_REQUESTED:
            return min(max(evidence.money.amount_minor, 1), payment.money.amount_minor)
        case EvidenceKind.CAPTURED if payment.captured_minor:
            return payment.captured_minor
        case EvidenceKind.CAPTURED if payment.pending is not None and payment.pending.amount_minor is not None:
            return payment.pending.amount_minor
        case _:
            return payment.money.amount_minor


def _is_possible_dispute(payment: Payment, evidence: Evidence) -> bool:
    """Return whether a dispute, or its end, fits what has been captured and disputed so far."""
    assert evidence.money is not None
    if evidence.money.currency != payment.money.currency or evidence.reference is None:
        return False
    if evidence.kind is EvidenceKind.DISPUTED:
        return 0 < evidence.money.amount_minor <= payment.captured_minor - payment.disputed_minor - payment.lost_minor
    return 0 < evidence.money.amount_minor <= payment.disputed_minor


def mismatch(payment: Payment, evidence: Evidence, *, now: datetime) -> Change:
    """A change for a person to look at: the evidence does not belong to this payment. The caller drops one that it has written
    before, which the ledger and the findings show.

    Once money is in suspense, or our own fetch has found somebody else's object, no job can do anything more.
    """
    money = evidence.money if evidence.kind is EvidenceKind.CAPTURED else None
    to_suspense = money if money is not None and 0 < money.amount_minor <= AMOUNT_MINOR_MAX else None
    suspended = payment.suspended or to_suspense is not None
    is_hopeless = (suspended or evidence.source in FETCHED) and payment.status not in FINAL
    after = replace(
        payment,
        version=payment.version + 1,
        updated_at=now,
        suspended=suspended,
        due_at=None if is_hopeless else payment.due_at,
    )
    return Change(before=payment, after=after, evidence=evidence, finding=Finding.EVIDENCE_MISMATCH, to_suspense=to_suspense)
