"""The time at which a job must look at a payment next. One column serves expiry, recheck, completion, release and late
refunds.
"""

from datetime import datetime, timedelta
from typing import assert_never

from core.evidence import EvidenceKind
from core.payment import Payment, Status, is_provisionally_declined
from core.retry import RECHECK_DELAYS_SECONDS, next_attempt_at

FIRST_LOOK_SECONDS = 600
"""The age at which an open payment is first checked for a lost webhook."""

COMPLETE_AFTER_SECONDS = 60
"""Grace period before the follow-up job adopts an operation with no recorded outcome."""

LOOK_AGAIN_SECONDS = 15
"""Grace period before the follow-up job repeats the check of a decline; the process that heard of it goes first."""

LAST_LOOK_SECONDS = 600
"""The age up to which a charge that its PSP does not know is looked at, however often that was in vain: its absence proves that
it was never received only after the time in which it could still arrive, which is shorter with every PSP.
"""

WARN_BEFORE_SECONDS = 86_400
"""The merchant is warned this long before an authorization ends."""


LOOK_AT_AUTHORIZED_SECONDS = 86_400
"""The interval between checks of an authorization whose end is not known."""


def first_due_at(*, created_at: datetime, expires_at: datetime) -> datetime:
    """The time of the first look at a payment whose opening has no recorded outcome: once its request must have died."""
    return min(expires_at, created_at + timedelta(seconds=COMPLETE_AFTER_SECONDS))


def next_check_at(payment: Payment, *, now: datetime) -> datetime:
    """The time of the next look at a page just seen open, in case a webhook is lost: at growing intervals."""
    age = max(now - payment.created_at, timedelta(seconds=FIRST_LOOK_SECONDS))
    return min(payment.expires_at, now + age) if payment.expires_at > now else now + timedelta(seconds=FIRST_LOOK_SECONDS)


def due_at(payment: Payment, kind: EvidenceKind, *, reference: str | None, now: datetime) -> datetime | None:
    """The time of the next look at a payment after evidence of this kind, or None for never.

    `reference` is the PSP's reference, which the payment itself may not have yet.
    """
    if payment.pending is not None:
        if kind in (EvidenceKind.CAPTURE_REQUESTED, EvidenceKind.VOID_REQUESTED):
            return now + timedelta(seconds=COMPLETE_AFTER_SECONDS)
        return next_attempt_at(RECHECK_DELAYS_SECONDS, attempts=payment.checks, now=now)
    if payment.suspended and payment.status is not Status.SUCCEEDED:
        return None
    match payment.status:
        case Status.PENDING:
            return _pending_due_at(payment, reference=reference, now=now)
        case Status.UNKNOWN:
            again = next_attempt_at(RECHECK_DELAYS_SECONDS, attempts=payment.checks, now=now)
            return again or _last_look_at(payment, reference=reference, now=now)
        case Status.AUTHORIZED:
            return _authorized_due_at(payment, now=now)
        case Status.SUCCEEDED:
            return _succeeded_due_at(payment, now=now)
        case Status.DECLINED | Status.EXPIRED | Status.CANCELED:
            return None
        case _:
            assert_never(payment.status)


def owes_late_refund(payment: Payment) -> bool:
    """Return whether the money arrived too late and must be refunded, and no refund has begun."""
    is_untouched = payment.refunded_minor == 0 and payment.refundable_minor > 0
    return payment.late and payment.terms.refunds_late and not payment.is_given_back and is_untouched


def _pending_due_at(payment: Payment, *, reference: str | None, now: datetime) -> datetime | None:
    if payment.checks:
        again = next_attempt_at(RECHECK_DELAYS_SECONDS, attempts=payment.checks, now=now)
        if payment.expires_at <= now:
            return again or _last_look_at(payment, reference=reference, now=now)
        return min(payment.expires_at, again) if again else payment.expires_at
    if is_provisionally_declined(payment):
        return now + timedelta(seconds=LOOK_AGAIN_SECONDS)
    if reference is None:
        return first_due_at(created_at=payment.created_at, expires_at=payment.expires_at)
    return next_check_at(payment, now=now)


def _last_look_at(payment: Payment, *, reference: str | None, now: datetime) -> datetime | None:
    """The time of the last look at a charge that may never have been received, or None if that is over."""
    at = payment.created_at + timedelta(seconds=LAST_LOOK_SECONDS)
    return at if payment.is_sync and reference is None and now < at else None


def _authorized_due_at(payment: Payment, *, now: datetime) -> datetime | None:
    if payment.checks:
        return next_attempt_at(RECHECK_DELAYS_SECONDS, attempts=payment.checks, now=now)
    if payment.capture_before is None:
        return now + timedelta(seconds=LOOK_AT_AUTHORIZED_SECONDS)
    warn_at = payment.capture_before - timedelta(seconds=WARN_BEFORE_SECONDS)
    return max(payment.capture_before, now) if payment.is_warned else max(warn_at, now)


def _succeeded_due_at(payment: Payment, *, now: datetime) -> datetime | None:
    if owes_late_refund(payment):
        return now
    return payment.release_at
