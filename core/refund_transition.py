"""The two functions that create and change a refund, together with its payment.

Invariants: the refunds of a payment, pending ones included, never exceed its captured amount less what is disputed; the available
wallet is debited first, then the pending one, and never beyond the merchant's negative limit; a refund that fails, even after it
had succeeded, returns exactly what it took, once.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import assert_never

import msgspec
from msgspec.structs import replace

from core.errors import Conflict, IllegalTransition
from core.evidence import Evidence, EvidenceKind, Finding, Source
from core.ids import RefundId
from core.money import AMOUNT_MINOR_MAX, Money
from core.operators_word import is_made_after_all, resolve_refund
from core.payment import Change, Payment, Status, evidence_about
from core.refund import Refund, RefundStatus, made_at_the_psp
from core.retry import RECHECK_DELAYS_SECONDS, next_attempt_at
from core.schedule import COMPLETE_AFTER_SECONDS, FIRST_LOOK_SECONDS, due_at, owes_late_refund

REFUND_TRANSITIONS: Mapping[RefundStatus, Mapping[EvidenceKind, RefundStatus]] = {
    RefundStatus.PENDING: {
        EvidenceKind.REFUND_PENDING: RefundStatus.PENDING,
        EvidenceKind.REFUND_SUCCEEDED: RefundStatus.SUCCEEDED,
        EvidenceKind.REFUND_FAILED: RefundStatus.FAILED,
        EvidenceKind.REFUND_LOST: RefundStatus.UNKNOWN,
        EvidenceKind.REFUND_NOT_FOUND: RefundStatus.PENDING,
    },
    RefundStatus.UNKNOWN: {
        EvidenceKind.REFUND_PENDING: RefundStatus.PENDING,
        EvidenceKind.REFUND_SUCCEEDED: RefundStatus.SUCCEEDED,
        EvidenceKind.REFUND_FAILED: RefundStatus.FAILED,
        EvidenceKind.REFUND_LOST: RefundStatus.UNKNOWN,
        EvidenceKind.REFUND_NOT_FOUND: RefundStatus.UNKNOWN,
    },
    RefundStatus.SUCCEEDED: {
        EvidenceKind.REFUND_PENDING: RefundStatus.SUCCEEDED,
        EvidenceKind.REFUND_SUCCEEDED: RefundStatus.SUCCEEDED,
        EvidenceKind.REFUND_FAILED: RefundStatus.FAILED,
        EvidenceKind.REFUND_LOST: RefundStatus.SUCCEEDED,
        EvidenceKind.REFUND_NOT_FOUND: RefundStatus.SUCCEEDED,
    },
    RefundStatus.FAILED: dict.fromkeys(
        (
            EvidenceKind.REFUND_PENDING,
            EvidenceKind.REFUND_SUCCEEDED,
            EvidenceKind.REFUND_FAILED,
            EvidenceKind.REFUND_LOST,
            EvidenceKind.REFUND_NOT_FOUND,
        ),
        RefundStatus.FAILED,
    ),
}
"""The status that follows each status by each kind of evidence. FAILED is final: a success that arrives later is an old one."""

REFUSED = "refused_by_the_psp"
"""The failure code of a refund that the PSP refused."""


class Balances(msgspec.Struct, frozen=True, kw_only=True):
    """The merchant's balances in the payment's currency, read under the wallets' locks, and how far below zero they may go."""

    available_minor: int
    pending_minor: int
    negative_limit_minor: int


def request_refund(
    payment: Payment,
    refund_id: RefundId,
    *,
    amount_minor: int,
    reason: str | None,
    balances: Balances,
    source: Source,
    now: datetime,
    reference: str | None = None,
) -> Change:
    """Accept a refund: debit the wallet now; the PSP is asked after the commit.

    A refund with a `reference` was made by the PSP itself, and the wallet is debited whatever it holds.

    Raises `Conflict` with the code `not_refundable`, `refund_too_large` or `insufficient_balance`.
    """
    if payment.status is not Status.SUCCEEDED:
        raise Conflict(f"a payment that is {payment.status} has no money to refund", code="not_refundable")
    if not 0 < amount_minor <= payment.refundable_minor:
        raise Conflict(f"at most {payment.refundable_minor} of this payment can still be refunded", code="refund_too_large")
    fee_minor = _fee_share(payment, amount_minor)
    if reference is not None:
        balances = replace(balances, negative_limit_minor=AMOUNT_MINOR_MAX + abs(balances.available_minor))
    from_pending_minor = _from_pending(amount_minor - fee_minor, balances)
    own_minor = min(from_pending_minor, payment.unreleased_minor)
    money = replace(payment.money, amount_minor=amount_minor)
    refund = Refund(
        id=refund_id,
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
        psp_account_id=payment.psp_account_id,
        money=money,
        status=RefundStatus.PENDING,
        created_at=now,
        updated_at=now,
        due_at=now + timedelta(seconds=COMPLETE_AFTER_SECONDS),
        from_pending_minor=from_pending_minor,
        fee_minor=fee_minor,
        reason=reason,
        reference=reference,
        is_accepted=reference is not None,
    )
    evidence = evidence_about(payment, EvidenceKind.REFUND_REQUESTED, source, money=money, refund_id=refund_id)
    changed = replace(
        payment,
        refunded_minor=payment.refunded_minor + amount_minor,
        pending_taken_minor=payment.pending_taken_minor + own_minor,
        fee_returned_minor=payment.fee_returned_minor + fee_minor,
        is_given_back=payment.is_given_back or source is Source.POLICY,
    )
    after = _stepped(changed, evidence.kind, now=now)
    return Change(before=payment, after=after, evidence=evidence, refund=refund)


def refund_made_at_psp(payment: Payment, reference: str, *, money: Money, now: datetime) -> Refund:
    """A refund that was made at the PSP, with what is known of it before it is accepted."""
    return Refund(
        id=made_at_the_psp(payment.id, reference),
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
        psp_account_id=payment.psp_account_id,
        money=money,
        status=RefundStatus.PENDING,
        created_at=now,
        updated_at=now,
        due_at=None,
        reference=reference,
        is_accepted=True,
    )


def apply_refund(payment: Payment, refund: Refund, evidence: Evidence, *, now: datetime) -> Change | None:
    """The change that evidence makes to a refund and its payment, or None if it brings nothing new.

    Raises `IllegalTransition` for evidence that is not about a refund.
    """
    target = REFUND_TRANSITIONS[refund.status].get(evidence.kind)
    if target is None or evidence.refund_id != refund.id:
        raise IllegalTransition(f"{evidence.kind} cannot happen to a refund that is {refund.status}")
    if not _matches(refund, evidence) or _contradicts(payment, refund, evidence):
        after = _stepped(payment, evidence.kind, now=now)
        return Change(before=payment, after=after, evidence=evidence, finding=Finding.EVIDENCE_MISMATCH, refund=refund)
    if is_made_after_all(refund, evidence):
        return _made_after_all(payment, refund, evidence, now=now)
    step = resolve_refund(refund, evidence) if evidence.source is Source.OPERATOR else _step(refund, evidence, target)
    is_look = evidence.kind is EvidenceKind.REFUND_NOT_FOUND and refund.due_at is not None and step.is_open
    if step == refund and not is_look:
        return None
    next_due_at = next_refund_check_at(step, now=now)
    given_up = next_due_at is None and refund.due_at is not None and step.is_open
    failed = step.status is RefundStatus.FAILED and refund.status is not RefundStatus.FAILED
    changed = _given_back(payment, refund) if failed else payment
    finding = Finding.LATE_REFUND_FAILED if failed and refund.id == payment.late_refund_id else None
    if failed and refund.is_operators_word:
        finding = Finding.OPERATOR_CONTRADICTED
    return Change(
        before=payment,
        after=_stepped(changed, evidence.kind, now=now),
        evidence=evidence,
        finding=Finding.REFUND_OUTCOME_UNKNOWN if given_up else finding,
        refund=replace(step, updated_at=now, due_at=next_due_at),
        refund_before=refund,
    )


def _given_back(payment: Payment, refund: Refund) -> Payment:
    """The payment after one of its refunds has failed."""
    own_minor = 0 if payment.release_at is None else min(refund.from_pending_minor, payment.pending_taken_minor)
    return replace(
        payment,
        refunded_minor=payment.refunded_minor - refund.money.amount_minor,
        pending_taken_minor=payment.pending_taken_minor - own_minor,
        fee_returned_minor=payment.fee_returned_minor - refund.fee_minor,
    )


def _stepped(payment: Payment, kind: EvidenceKind, *, now: datetime) -> Payment:
    after = replace(payment, version=payment.version + 1, updated_at=now)
    return (
        after
        if payment.due_at is None and not owes_late_refund(after)
        else replace(after, due_at=due_at(after, kind, reference=after.reference, now=now))
    )


def _matches(refund: Refund, evidence: Evidence) -> bool:
    return (
        evidence.psp_account_id == refund.psp_account_id
        and (evidence.reference is None or refund.reference is None or evidence.reference == refund.reference)
        and (evidence.money is None or evidence.money == refund.money)
    )


def _contradicts(payment: Payment, refund: Refund, evidence: Evidence) -> bool:
    """Return whether the PSP made a refund that it had refused, as opposed to an old success of one that failed later; or one
    that operators had said it did not make, whose money has been refunded otherwise since.
    """
    if is_made_after_all(refund, evidence):
        return refund.money.amount_minor > payment.refundable_minor
    return refund.failure_code == REFUSED and evidence.kind is EvidenceKind.REFUND_SUCCEEDED


def _made_after_all(payment: Payment, refund: Refund, evidence: Evidence, *, now: datetime) -> Change:
    """The change by a refund that exists at the PSP although operators had said that it did not: the wallet is debited again,
    whatever it holds.
    """
    is_done = evidence.kind is EvidenceKind.REFUND_SUCCEEDED
    again = replace(
        refund,
        status=RefundStatus.SUCCEEDED if is_done else RefundStatus.PENDING,
        reference=refund.reference or evidence.reference,
        failure_code=None,
        is_accepted=True,
        is_operators_word=False,
        from_pending_minor=0,
        checks=0,
        updated_at=now,
    )
    changed = replace(
        payment,
        refunded_minor=payment.refunded_minor + refund.money.amount_minor,
        fee_returned_minor=payment.fee_returned_minor + refund.fee_minor,
    )
    return Change(
        before=payment,
        after=_stepped(changed, evidence.kind, now=now),
        evidence=evidence,
        finding=Finding.OPERATOR_CONTRADICTED,
        refund=replace(again, due_at=next_refund_check_at(again, now=now)),
        refund_before=refund,
    )


def _step(refund: Refund, evidence: Evidence, target: RefundStatus) -> Refund:
    is_word = refund.is_operators_word and evidence.kind not in (EvidenceKind.REFUND_SUCCEEDED, EvidenceKind.REFUND_FAILED)
    named = replace(refund, status=target, reference=refund.reference or evidence.reference, is_operators_word=is_word)
    match evidence.kind:
        case EvidenceKind.REFUND_PENDING:
            return named if target is not RefundStatus.PENDING else replace(named, is_accepted=True, checks=0)
        case EvidenceKind.REFUND_SUCCEEDED:
            return named if target is RefundStatus.FAILED else replace(named, is_accepted=True)
        case EvidenceKind.REFUND_LOST if refund.is_accepted:
            return refund  # the PSP has it, whatever became of its answer
        case EvidenceKind.REFUND_FAILED if refund.status is not RefundStatus.FAILED:
            return replace(named, failure_code=evidence.code or "failed")
        case EvidenceKind.REFUND_NOT_FOUND if refund.is_open and refund.due_at is not None:
            is_look = evidence.source is not Source.ACCESS
            return replace(named, checks=min(refund.checks + is_look, len(RECHECK_DELAYS_SECONDS)))
        case _:
            return named


def next_refund_check_at(refund: Refund, *, now: datetime) -> datetime | None:
    """The time at which a job must look at a refund next: at growing intervals if the PSP has accepted it, else by the recheck
    schedule.
    """
    match refund.status:
        case RefundStatus.PENDING if refund.is_accepted and not refund.checks:
            return now + max(now - refund.created_at, timedelta(seconds=FIRST_LOOK_SECONDS))
        case RefundStatus.PENDING | RefundStatus.UNKNOWN:
            return next_attempt_at(RECHECK_DELAYS_SECONDS, attempts=refund.checks, now=now)
        case RefundStatus.SUCCEEDED | RefundStatus.FAILED:
            return None
        case _:
            assert_never(refund.status)


def _fee_share(payment: Payment, amount_minor: int) -> int:
    """The part of the fee that is returned, in proportion to what is refunded so far: all of it for a refund of everything."""
    if not payment.terms.refunds_fee:
        return 0
    fee, captured = payment.terms.fee_minor(payment.captured_minor), payment.captured_minor
    owed = fee * (payment.refunded_minor + amount_minor) // captured - payment.fee_returned_minor
    return min(max(owed, 0), amount_minor)


def _from_pending(net_minor: int, balances: Balances) -> int:
    """The part of a refund that the pending wallet pays. Raises `Conflict` if both wallets and the limit are too small."""
    short = max(net_minor - max(balances.available_minor, 0), 0)
    from_pending = min(short, max(balances.pending_minor, 0))
    left = balances.available_minor - (net_minor - from_pending)
    if left < -balances.negative_limit_minor and net_minor > from_pending:
        raise Conflict("the wallet does not hold enough for this refund", code="insufficient_balance")
    return from_pending
