"""A payment and the one function that changes it.

Whoever learns something about a payment (a PSP webhook, a customer's return, a recheck, the answer to our own call) turns it
into `Evidence` and asks `apply` what follows. Invariants:

- `TRANSITIONS` is the only place that says which status may follow which; a pair that is not in it raises.
- `apply` is a pure function. Evidence that brings nothing new yields None, so duplicates and late arrivals are harmless, and the
  same facts in any order lead to the same status and the same postings. (A refused attempt is always new: it is for the log.)
- Evidence that the PSP holds the money wins from every state, but only if account, operation, reference, amount and currency
  are the payment's own; otherwise the money goes to suspense and a person is told.
- A lost answer is UNKNOWN, never DECLINED. A decline is provisional until a fetch, made after it was first heard of, agrees.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from core.errors import IllegalTransition
from core.evidence import FETCHED, Evidence, EvidenceKind, Finding, Source
from core.ids import MerchantId, OperationId, PaymentId, PspAccountId
from core.money import AMOUNT_MINOR_MAX, Money
from core.retry import RECHECK_DELAYS_SECONDS, next_attempt_at

FIRST_LOOK_SECONDS = 600
"""How old an open payment is when it is first looked at for a webhook that may have been lost."""

COMPLETE_AFTER_SECONDS = 60
"""How long a payment whose PSP object we know nothing of is left to the request that created it."""


class Status(StrEnum):
    """Where a payment stands. `UNKNOWN`: the PSP was asked and the answer was lost."""

    PENDING = "PENDING"
    AUTHORIZED = "AUTHORIZED"
    SUCCEEDED = "SUCCEEDED"
    DECLINED = "DECLINED"
    EXPIRED = "EXPIRED"
    CANCELED = "CANCELED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payment as it stands. `version` counts its changes; `due_at` is when a job must look at it next."""

    id: PaymentId
    merchant_id: MerchantId
    psp_account_id: PspAccountId
    operation_id: OperationId
    order_id: str
    money: Money
    status: Status
    version: int
    expires_at: datetime
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    reference: str | None = None
    payment_url: str | None = None
    return_url: str | None = None
    description: str | None = None
    captured_minor: int = 0
    late: bool = False
    suspended: bool = False
    decline_code: str | None = None
    did_check_again: bool = False
    checks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step of a payment, to be written by compare-and-set on `before.version`."""

    before: Payment
    after: Payment
    evidence: Evidence
    finding: Finding | None = None
    to_suspense: Money | None = None


_MONEY_WINS = {EvidenceKind.CAPTURED: Status.SUCCEEDED}
_OPEN = {
    **_MONEY_WINS,
    EvidenceKind.AUTHORIZED: Status.AUTHORIZED,
    EvidenceKind.DECLINED: Status.DECLINED,
    EvidenceKind.EXPIRED: Status.EXPIRED,
    EvidenceKind.CANCELED: Status.CANCELED,
    EvidenceKind.REJECTED: Status.CANCELED,
}
_LOOKS_IN_VAIN = (EvidenceKind.NOT_FOUND, EvidenceKind.UNANSWERED)
_ASKING = (*_LOOKS_IN_VAIN, EvidenceKind.LOST)


def _stays(status: Status, *kinds: EvidenceKind) -> dict[EvidenceKind, Status]:
    return dict.fromkeys(kinds, status)


_PSP_FACTS = (
    EvidenceKind.OPENED,
    EvidenceKind.ATTEMPT_FAILED,
    EvidenceKind.AUTHORIZED,
    EvidenceKind.DECLINED,
    EvidenceKind.EXPIRED,
    EvidenceKind.CANCELED,
)

TRANSITIONS: Mapping[Status, Mapping[EvidenceKind, Status]] = {
    Status.PENDING: {
        **_OPEN,
        **_stays(Status.PENDING, EvidenceKind.OPENED, EvidenceKind.ATTEMPT_FAILED, *_LOOKS_IN_VAIN),
        EvidenceKind.LOST: Status.UNKNOWN,
        EvidenceKind.UNREACHABLE: Status.CANCELED,
    },
    Status.UNKNOWN: {
        **_OPEN,
        EvidenceKind.OPENED: Status.PENDING,
        **_stays(Status.UNKNOWN, EvidenceKind.ATTEMPT_FAILED, *_ASKING),
    },
    Status.AUTHORIZED: {
        **_MONEY_WINS,
        EvidenceKind.EXPIRED: Status.EXPIRED,
        EvidenceKind.CANCELED: Status.CANCELED,
        **_stays(
            Status.AUTHORIZED,
            EvidenceKind.OPENED,
            EvidenceKind.ATTEMPT_FAILED,
            EvidenceKind.AUTHORIZED,
            EvidenceKind.DECLINED,
            *_ASKING,
        ),
    },
    Status.SUCCEEDED: {**_MONEY_WINS, **_stays(Status.SUCCEEDED, *_PSP_FACTS, *_ASKING)},
    Status.DECLINED: {
        **_stays(Status.DECLINED, *_PSP_FACTS, *_ASKING),
        **_MONEY_WINS,
        EvidenceKind.AUTHORIZED: Status.AUTHORIZED,
    },
    Status.EXPIRED: {**_MONEY_WINS, **_stays(Status.EXPIRED, *_PSP_FACTS, *_ASKING)},
    Status.CANCELED: {**_MONEY_WINS, **_stays(Status.CANCELED, *_PSP_FACTS, *_ASKING)},
}
"""What each kind of evidence makes of each status. A missing pair cannot happen and raises `IllegalTransition`."""

FINAL = frozenset({Status.SUCCEEDED, Status.DECLINED, Status.EXPIRED, Status.CANCELED})
_CLOSED = frozenset({Status.EXPIRED, Status.CANCELED})
_UNSETTLED = frozenset({Status.PENDING, Status.UNKNOWN})


def apply(payment: Payment, evidence: Evidence, *, now: datetime) -> Change | None:
    """What the evidence makes of the payment; None where it brings nothing new.

    Raises `IllegalTransition` for a pair outside `TRANSITIONS`.
    """
    target = TRANSITIONS[payment.status].get(evidence.kind)
    if target is None:
        raise IllegalTransition(f"{evidence.kind} cannot happen to a payment that is {payment.status}")
    if not _matches(payment, evidence):
        return _mismatch(payment, evidence, now=now)
    step = _step(payment, evidence, target)
    named = replace(
        step,
        reference=step.reference or evidence.reference,
        payment_url=step.payment_url or evidence.payment_url,
    )
    for_the_log = evidence.kind is EvidenceKind.ATTEMPT_FAILED and evidence.source is Source.WEBHOOK
    if named == payment and not for_the_log and not _counts_as_look(payment, evidence):
        return None
    due_at = _due_at(named, now=now)
    given_up = due_at is None and named.status not in FINAL and evidence.kind in _LOOKS_IN_VAIN
    return Change(
        before=payment,
        after=replace(named, version=payment.version + 1, updated_at=now, due_at=due_at),
        evidence=evidence,
        finding=Finding.OUTCOME_UNKNOWN if given_up else None,
    )


def _matches(payment: Payment, evidence: Evidence) -> bool:
    return (
        evidence.psp_account_id == payment.psp_account_id
        and evidence.operation_id == payment.operation_id
        and (evidence.reference is None or payment.reference is None or evidence.reference == payment.reference)
        and (evidence.money is None or evidence.money == payment.money)
    )


def _mismatch(payment: Payment, evidence: Evidence, *, now: datetime) -> Change:
    """A change for a person to look at. The caller drops one that it has written before: the ledger and the findings know.

    Once money is in suspense, or our own look finds a stranger's object, there is nothing that a job could do.
    """
    money = evidence.money if evidence.kind is EvidenceKind.CAPTURED else None
    to_suspense = money if money is not None and 0 < money.amount_minor <= AMOUNT_MINOR_MAX else None
    suspended = payment.suspended or to_suspense is not None
    is_hopeless = suspended or evidence.source in FETCHED
    after = replace(
        payment,
        version=payment.version + 1,
        updated_at=now,
        suspended=suspended,
        due_at=None if is_hopeless else payment.due_at,
    )
    return Change(before=payment, after=after, evidence=evidence, finding=Finding.EVIDENCE_MISMATCH, to_suspense=to_suspense)


def _step(payment: Payment, evidence: Evidence, target: Status) -> Payment:
    """The payment after one step, its names and its due time not yet filled in."""
    match evidence.kind:
        case EvidenceKind.CAPTURED if payment.status is not Status.SUCCEEDED:
            assert evidence.money is not None
            late = payment.status in _CLOSED
            captured = evidence.money.amount_minor
            return replace(payment, status=target, captured_minor=captured, late=late, decline_code=None)
        case EvidenceKind.DECLINED if target is Status.DECLINED and payment.status is not Status.DECLINED:
            heard_before = payment.decline_code is not None
            if heard_before and evidence.source in FETCHED:
                return replace(payment, status=target, did_check_again=True)
            return replace(payment, decline_code=payment.decline_code or evidence.code or "declined")
        case EvidenceKind.LOST | EvidenceKind.UNREACHABLE | EvidenceKind.REJECTED if payment.reference is not None:
            return payment  # another request has opened it meanwhile
        case EvidenceKind.NOT_FOUND | EvidenceKind.UNANSWERED if payment.status in _UNSETTLED:
            counted = min(payment.checks + 1, len(RECHECK_DELAYS_SECONDS))
            return replace(payment, checks=counted) if _counts_as_look(payment, evidence) else payment
        case EvidenceKind.OPENED if payment.status in _UNSETTLED:
            # Seen open by a fetch, it is not declined after all: the customer may still try another card.
            contradicted = evidence.source in FETCHED
            return replace(payment, status=target, checks=0, decline_code=None if contradicted else payment.decline_code)
        case EvidenceKind.AUTHORIZED if payment.status is Status.DECLINED:
            return replace(payment, status=target, decline_code=None)
        case EvidenceKind.UNREACHABLE | EvidenceKind.REJECTED:
            return replace(payment, status=target, decline_code=f"psp_{evidence.kind}")
        case (
            EvidenceKind.OPENED
            | EvidenceKind.ATTEMPT_FAILED
            | EvidenceKind.AUTHORIZED
            | EvidenceKind.CAPTURED
            | EvidenceKind.DECLINED
            | EvidenceKind.EXPIRED
            | EvidenceKind.CANCELED
            | EvidenceKind.NOT_FOUND
            | EvidenceKind.UNANSWERED
            | EvidenceKind.LOST
        ):
            return replace(payment, status=target)
        case _:
            assert_never(evidence.kind)


def _counts_as_look(payment: Payment, evidence: Evidence) -> bool:
    """Whether a look in vain is one of the schedule's: not a reader's, and not after we have given up."""
    is_scheduled = evidence.source is not Source.ACCESS and payment.due_at is not None
    return is_scheduled and evidence.kind in _LOOKS_IN_VAIN and payment.status in _UNSETTLED


def is_provisionally_declined(payment: Payment) -> bool:
    """Whether a decline was heard of that no fetch has confirmed yet."""
    return payment.status in _UNSETTLED and payment.decline_code is not None


def first_due_at(*, created_at: datetime, expires_at: datetime) -> datetime:
    """When to look at a payment whose opening nothing has been heard of: once its request must have died."""
    return min(expires_at, created_at + timedelta(seconds=COMPLETE_AFTER_SECONDS))


def next_look_at(payment: Payment, *, now: datetime) -> datetime:
    """When to look next at an open page that was just seen open: in case a webhook is lost, less and less often."""
    age = max(now - payment.created_at, timedelta(seconds=FIRST_LOOK_SECONDS))
    return min(payment.expires_at, now + age) if payment.expires_at > now else now + timedelta(seconds=FIRST_LOOK_SECONDS)


def _pending_due_at(payment: Payment, *, now: datetime) -> datetime | None:
    if payment.checks:
        again = next_attempt_at(RECHECK_DELAYS_SECONDS, attempts=payment.checks, now=now)
        if payment.expires_at <= now:
            return again
        return min(payment.expires_at, again) if again else payment.expires_at
    if is_provisionally_declined(payment):
        return now
    if payment.reference is None:
        return first_due_at(created_at=payment.created_at, expires_at=payment.expires_at)
    return next_look_at(payment, now=now)


def _due_at(payment: Payment, *, now: datetime) -> datetime | None:
    if payment.suspended:
        return None
    match payment.status:
        case Status.PENDING:
            return _pending_due_at(payment, now=now)
        case Status.UNKNOWN:
            return next_attempt_at(RECHECK_DELAYS_SECONDS, attempts=payment.checks, now=now)
        case Status.AUTHORIZED | Status.SUCCEEDED | Status.DECLINED | Status.EXPIRED | Status.CANCELED:
            return None
        case _:
            assert_never(payment.status)
