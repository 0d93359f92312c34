"""The one function that changes a payment (promise:one-transition).

Every source of facts about a payment (a PSP webhook, a customer's return, a recheck, the answer to our own call, a merchant's
request) makes them `Evidence`, and `apply` decides the change. Invariants:

- `TRANSITIONS` alone says which status may follow which; a pair outside it raises.
- `apply` is a pure function. Evidence that brings nothing new yields None, so duplicates and late arrivals are harmless, and the
  same facts in any order lead to the same status and the same postings. (A failed attempt is always new, because it is logged.
  The end of a dispute whose beginning is unknown is a mismatch, for a person.)
- Evidence that the PSP holds the money wins from every state, but only if account, operation, reference, amount and currency are
  the payment's own; otherwise the money goes to suspense with a finding.
- A lost answer is UNKNOWN, never DECLINED. It ends by the PSP's word, or as CANCELED once it is proved that the PSP never
  received the operation. A decline is provisional until a fetch made after it was first reported agrees.
- What operators say counts only until the PSP speaks (`core.operators_word`).
- An authorization that arrives after the payment was over is voided; the same change begins the void.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, assert_never

from msgspec.structs import replace

from core.errors import IllegalTransition, TokenUnknown
from core.evidence import DISPUTES, FETCHED, Evidence, EvidenceKind, Finding, Source
from core.matching import matches, mismatch
from core.operators_word import has_followed_up, is_overruled, resolve, unresolved
from core.payment import CLOSED, UNSETTLED, Change, OperationKind, Payment, PendingOperation, Status, captured
from core.retry import RECHECK_DELAYS_SECONDS
from core.schedule import due_at

CONFIRM_SECONDS = 900
"""The time that a customer has to confirm a payment that was charged by token."""

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
    *DISPUTES,
)

TRANSITIONS: Mapping[Status, Mapping[EvidenceKind, Status]] = {
    Status.PENDING: {
        **_OPEN,
        **_stays(Status.PENDING, EvidenceKind.OPENED, EvidenceKind.ATTEMPT_FAILED, *_LOOKS_IN_VAIN, *DISPUTES),
        EvidenceKind.LOST: Status.UNKNOWN,
        EvidenceKind.UNREACHABLE: Status.CANCELED,
        EvidenceKind.DENIED: Status.CANCELED,
        EvidenceKind.REROUTED: Status.PENDING,
        EvidenceKind.RESUMED: Status.PENDING,
    },
    Status.UNKNOWN: {
        **_OPEN,
        EvidenceKind.OPENED: Status.PENDING,
        EvidenceKind.UNREACHABLE: Status.CANCELED,
        **_stays(Status.UNKNOWN, EvidenceKind.ATTEMPT_FAILED, EvidenceKind.RESUMED, *_ASKING, *DISPUTES),
    },
    Status.AUTHORIZED: {
        **_MONEY_WINS,
        EvidenceKind.EXPIRED: Status.EXPIRED,
        EvidenceKind.CANCELED: Status.CANCELED,
        EvidenceKind.DECLINED: Status.CANCELED,
        **_stays(
            Status.AUTHORIZED,
            EvidenceKind.OPENED,
            EvidenceKind.ATTEMPT_FAILED,
            EvidenceKind.AUTHORIZED,
            EvidenceKind.REJECTED,
            EvidenceKind.CAPTURE_REQUESTED,
            EvidenceKind.VOID_REQUESTED,
            EvidenceKind.EXPIRING,
            *_ASKING,
            *DISPUTES,
        ),
    },
    Status.SUCCEEDED: {
        **_MONEY_WINS,
        **_stays(
            Status.SUCCEEDED,
            *_PSP_FACTS,
            *_ASKING,
            EvidenceKind.REJECTED,
            EvidenceKind.RELEASED,
            EvidenceKind.LATE_REFUND_REFUSED,
        ),
    },
    Status.DECLINED: {
        **_stays(Status.DECLINED, *_PSP_FACTS, *_ASKING, EvidenceKind.REJECTED),
        **_MONEY_WINS,
        EvidenceKind.AUTHORIZED: Status.AUTHORIZED,
    },
    Status.EXPIRED: {**_MONEY_WINS, **_stays(Status.EXPIRED, *_PSP_FACTS, *_ASKING, EvidenceKind.REJECTED)},
    Status.CANCELED: {**_MONEY_WINS, **_stays(Status.CANCELED, *_PSP_FACTS, *_ASKING, EvidenceKind.REJECTED)},
}
"""The status that follows each status by each kind of evidence. A pair that is missing raises `IllegalTransition`."""


def apply(payment: Payment, evidence: Evidence, *, now: datetime) -> Change | None:
    """The change that evidence makes to a payment, or None if it brings nothing new.

    Raises `IllegalTransition` for a pair outside `TRANSITIONS`, or for a request while another operation is under way.
    """
    if evidence.source is Source.OPERATOR:
        return resolve(payment, evidence, now=now)
    if payment.is_operators_word and is_overruled(payment, evidence):
        return _overruled(payment, evidence, now=now)
    target = _target(payment, evidence)
    if not matches(payment, evidence):
        return mismatch(payment, evidence, now=now)
    step = _step(payment, evidence, target, now=now)
    is_about_payment = evidence.kind not in DISPUTES
    names: dict[str, Any] = {
        "reference": step.reference or (evidence.reference if is_about_payment else None),
        "payment_url": step.payment_url or evidence.payment_url,
        "risk": step.risk or evidence.risk,
    }
    if not _is_news(payment, step, names, evidence):
        return None
    next_due_at = due_at(step, evidence.kind, reference=names["reference"], now=now)
    after = replace(step, **names, version=payment.version + 1, updated_at=now, due_at=next_due_at)
    given_up = next_due_at is None and payment.due_at is not None and evidence.kind in _LOOKS_IN_VAIN
    return Change(
        before=payment,
        after=after,
        evidence=evidence,
        finding=_finding(payment, evidence, given_up=given_up),
        requested=_begun(payment, after, evidence, now=now),
    )


def _target(payment: Payment, evidence: Evidence) -> Status:
    target = TRANSITIONS[payment.status].get(evidence.kind)
    if target is None:
        raise IllegalTransition(f"{evidence.kind} cannot happen to a payment that is {payment.status}")
    return target


def _overruled(payment: Payment, evidence: Evidence, *, now: datetime) -> Change:
    """The change by the PSP's own word about a payment that operators have resolved: it becomes what it would be without them."""
    was = unresolved(payment)
    if not matches(payment if payment.captured_minor else was, evidence):
        return mismatch(payment, evidence, now=now)
    step = _step(was, evidence, _target(was, evidence), now=now)
    is_paid = payment.status is Status.SUCCEEDED
    is_confirmed = step.status is Status.SUCCEEDED if is_paid else step.status is not Status.SUCCEEDED
    if is_confirmed or (is_paid and has_followed_up(payment)):
        step = replace(payment, pending=None, suspended=payment.suspended or payment.from_suspense)
    step = replace(
        step,
        reference=payment.reference or evidence.reference,
        is_operators_word=False,
        from_suspense=False,
        version=payment.version + 1,
        updated_at=now,
    )
    return Change(
        before=payment,
        after=replace(step, due_at=due_at(step, evidence.kind, reference=step.reference, now=now)),
        evidence=evidence,
        finding=None if is_confirmed and not payment.from_suspense else Finding.OPERATOR_CONTRADICTED,
        requested=step.pending,
    )


def _is_news(payment: Payment, step: Payment, names: Mapping[str, object], evidence: Evidence) -> bool:
    """Return whether the step changes anything, or must be logged all the same."""
    if step.status is not payment.status or (step is not payment and step != payment):
        return True
    if any(getattr(payment, name) != value for name, value in names.items()):
        return True
    is_told_attempt = evidence.kind is EvidenceKind.ATTEMPT_FAILED and evidence.source is Source.WEBHOOK
    return is_told_attempt or evidence.kind is EvidenceKind.RESUMED or _counts_as_look(payment, evidence)


def _begun(payment: Payment, after: Payment, evidence: Evidence, *, now: datetime) -> PendingOperation | None:
    """The operation that the change begins, if any."""
    if evidence.kind is EvidenceKind.REROUTED:
        kind = OperationKind.CHARGE if payment.is_sync else OperationKind.INTENT
        return PendingOperation(id=after.operation_id, kind=kind, amount_minor=after.money.amount_minor, since=now)
    return after.pending if payment.pending is None else None


def _finding(payment: Payment, evidence: Evidence, *, given_up: bool) -> Finding | None:
    match evidence.kind:
        case EvidenceKind.DISPUTED:
            return Finding.DISPUTE
        case EvidenceKind.LATE_REFUND_REFUSED:
            return Finding.LATE_REFUND_FAILED
        case EvidenceKind.REJECTED if payment.status in CLOSED:
            return Finding.VOID_REFUSED
        case _:
            return Finding.OUTCOME_UNKNOWN if given_up else None


def _step(payment: Payment, evidence: Evidence, target: Status, *, now: datetime) -> Payment:
    """The payment after one step, before its references and its due time are filled in."""
    match evidence.kind:
        case EvidenceKind.CAPTURED:
            return _captured(payment, evidence, now=now)
        case EvidenceKind.DECLINED if target is Status.DECLINED and payment.status is not Status.DECLINED:
            heard_before = payment.decline_code is not None
            if heard_before and evidence.source in FETCHED:
                return replace(payment, status=target, did_check_again=True)
            return replace(payment, decline_code=payment.decline_code or evidence.code or "declined", checks=0)
        case EvidenceKind.DECLINED if payment.status is Status.AUTHORIZED:
            # A reported decline is old news; one that our own fetch sees means that the authorization is gone.
            return replace(payment, status=target, pending=None) if evidence.source in FETCHED else payment
        case EvidenceKind.NOT_FOUND | EvidenceKind.UNANSWERED:
            counted = min(payment.checks + 1, len(RECHECK_DELAYS_SECONDS))
            return replace(payment, checks=counted) if _counts_as_look(payment, evidence) else payment
        case EvidenceKind.LOST | EvidenceKind.UNREACHABLE | EvidenceKind.REJECTED:
            return _unanswered(payment, evidence, target)
        case EvidenceKind.DENIED:
            return replace(payment, status=target, decline_code=evidence.code)
        case EvidenceKind.REROUTED:
            return _rerouted(payment, evidence)
        case EvidenceKind.OPENED if payment.status in UNSETTLED:
            return _opened(payment, evidence, target, now=now)
        case EvidenceKind.AUTHORIZED:
            return _authorized(payment, evidence, target, now=now)
        case EvidenceKind.EXPIRED | EvidenceKind.CANCELED:
            return replace(payment, status=target, pending=None)
        case EvidenceKind.CAPTURE_REQUESTED | EvidenceKind.VOID_REQUESTED:
            return _requested(payment, evidence, now=now)
        case EvidenceKind.DISPUTED | EvidenceKind.DISPUTE_WON | EvidenceKind.DISPUTE_LOST:
            assert evidence.money is not None
            sign = 1 if evidence.kind is EvidenceKind.DISPUTED else -1
            lost = evidence.money.amount_minor if evidence.kind is EvidenceKind.DISPUTE_LOST else 0
            disputed = payment.disputed_minor + sign * evidence.money.amount_minor
            return replace(payment, disputed_minor=disputed, lost_minor=payment.lost_minor + lost)
        case EvidenceKind.EXPIRING:
            return replace(payment, is_warned=True)
        case EvidenceKind.RELEASED:
            return replace(payment, release_at=None)
        case EvidenceKind.LATE_REFUND_REFUSED:
            return replace(payment, is_given_back=True)
        case EvidenceKind.OPENED | EvidenceKind.ATTEMPT_FAILED | EvidenceKind.DECLINED | EvidenceKind.RESUMED:
            return replace(payment, status=target)
        case (
            EvidenceKind.REFUND_REQUESTED
            | EvidenceKind.REFUND_PENDING
            | EvidenceKind.REFUND_SUCCEEDED
            | EvidenceKind.REFUND_FAILED
            | EvidenceKind.REFUND_LOST
            | EvidenceKind.REFUND_NOT_FOUND
        ):
            raise IllegalTransition(f"{evidence.kind} is about a refund")
        case _:
            assert_never(evidence.kind)


def _opened(payment: Payment, evidence: Evidence, target: Status, *, now: datetime) -> Payment:
    # Seen open by a fetch, it is not declined after all: the customer may still try another card.
    code = None if evidence.source in FETCHED else payment.decline_code
    expires_at = payment.expires_at
    if payment.is_sync and payment.payment_url is None and evidence.payment_url is not None:
        expires_at = max(expires_at, now + timedelta(seconds=CONFIRM_SECONDS))
    return replace(payment, status=target, checks=0, decline_code=code, expires_at=expires_at)


def _captured(payment: Payment, evidence: Evidence, *, now: datetime) -> Payment:
    assert evidence.money is not None
    return payment if payment.status is Status.SUCCEEDED else captured(payment, evidence.money.amount_minor, now=now)


def _authorized(payment: Payment, evidence: Evidence, target: Status, *, now: datetime) -> Payment:
    if payment.status in CLOSED:
        if payment.pending is not None:
            return payment  # its void has begun
        void = PendingOperation(id=payment.void_id, kind=OperationKind.VOID, amount_minor=None, since=now)
        return replace(payment, pending=void, checks=0)
    if payment.status is Status.SUCCEEDED:
        return payment
    return replace(
        payment,
        status=target,
        decline_code=None,
        capture_before=payment.capture_before or evidence.capture_before,
        checks=payment.checks if payment.pending is not None else 0,
    )


def _rerouted(payment: Payment, evidence: Evidence) -> Payment:
    """Ask another account, by another operation. Raises `IllegalTransition` once the first may have received anything."""
    if payment.reference is not None or payment.decline_code is not None or payment.pending is not None:
        raise IllegalTransition("the PSP may have received this payment, so it cannot go to another account")
    assert evidence.requested_id is not None
    assert evidence.rerouted_to is not None
    return replace(payment, psp_account_id=evidence.rerouted_to, operation_id=evidence.requested_id)


def _requested(payment: Payment, evidence: Evidence, *, now: datetime) -> Payment:
    if payment.pending is not None:
        raise IllegalTransition(f"a {payment.pending.kind} of this payment is already under way")
    assert evidence.requested_id is not None
    kind = OperationKind.CAPTURE if evidence.kind is EvidenceKind.CAPTURE_REQUESTED else OperationKind.VOID
    amount = evidence.money.amount_minor if evidence.money else None
    return replace(
        payment, pending=PendingOperation(id=evidence.requested_id, kind=kind, amount_minor=amount, since=now), checks=0
    )


def _unanswered(payment: Payment, evidence: Evidence, target: Status) -> Payment:
    """The payment after a call of ours has failed or was refused: the pending operation's call if there is one, else the
    opening.
    """
    if evidence.requested_id is not None:
        is_this = payment.pending is not None and payment.pending.id == evidence.requested_id
        return replace(payment, pending=None, checks=0) if is_this else payment
    if payment.pending is not None:
        return payment
    if payment.status not in UNSETTLED or (payment.reference is not None and not payment.is_sync):
        return payment  # another request has opened it meanwhile, or its end is known
    if evidence.kind is EvidenceKind.LOST:
        return replace(payment, status=target)
    is_told_why = evidence.kind is EvidenceKind.REJECTED and evidence.code == TokenUnknown.code
    return replace(payment, status=target, decline_code=evidence.code if is_told_why else f"psp_{evidence.kind}")


def _counts_as_look(payment: Payment, evidence: Evidence) -> bool:
    """Return whether a fetch that brought nothing counts toward the schedule: not one for a reader, and not one after the
    schedule has ended.
    """
    is_scheduled = evidence.source is not Source.ACCESS and payment.due_at is not None
    is_open = payment.pending is not None or payment.status in UNSETTLED or payment.status is Status.AUTHORIZED
    return is_scheduled and is_open and evidence.kind in _LOOKS_IN_VAIN
