"""Whether evidence is of the payment that it names, and what becomes of evidence that is not."""

from datetime import datetime

from msgspec.structs import replace

from core.evidence import DISPUTES, FETCHED, Evidence, EvidenceKind, Finding
from core.money import AMOUNT_MINOR_MAX
from core.payment import FINAL, Change, Payment


def matches(payment: Payment, evidence: Evidence) -> bool:
    """Whether the evidence is of this payment: account, operation, reference, currency and amount."""
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
    """The amount that the operation which the evidence is about was for."""
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
    """Whether a dispute, or the end of one, fits what was captured and what is disputed already."""
    assert evidence.money is not None
    if evidence.money.currency != payment.money.currency or evidence.reference is None:
        return False
    if evidence.kind is EvidenceKind.DISPUTED:
        return 0 < evidence.money.amount_minor <= payment.captured_minor - payment.disputed_minor - payment.lost_minor
    return 0 < evidence.money.amount_minor <= payment.disputed_minor


def mismatch(payment: Payment, evidence: Evidence, *, now: datetime) -> Change:
    """A change for a person to look at: the evidence is not of this payment. The caller drops one that it has written before: the
    ledger and the findings know.

    Once money is in suspense, or our own look finds a stranger's object, there is nothing that a job could do.
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
