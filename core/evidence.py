"""What is learned about a payment, and from whom: the one form in which all of it meets the transition functions."""

from datetime import datetime
from enum import StrEnum

import msgspec

from core.ids import OperationId, PspAccountId, RefundId
from core.money import Money


class EvidenceKind(StrEnum):
    """What was learned.

    The first group are facts at the PSP. NOT_FOUND and UNANSWERED are looks that brought nothing; LOST, UNREACHABLE and REJECTED
    are ends of a call of ours; REROUTED is the choice of another PSP account, for one that provably received nothing; RESUMED
    says that another request has taken the payment up; DENIED is our own no, before any PSP was asked. The requests are what a
    merchant wants, before the PSP is asked for it; EXPIRING and RELEASED are what the passing of time brings. Kinds that begin
    with REFUND are about one refund, and are for `core.refund`.
    """

    OPENED = "opened"
    ATTEMPT_FAILED = "attempt_failed"
    AUTHORIZED = "authorized"
    CAPTURED = "captured"
    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELED = "canceled"
    DISPUTED = "disputed"
    DISPUTE_WON = "dispute_won"
    DISPUTE_LOST = "dispute_lost"
    NOT_FOUND = "not_found"
    UNANSWERED = "unanswered"
    LOST = "lost"
    UNREACHABLE = "unreachable"
    REJECTED = "rejected"
    REROUTED = "rerouted"
    DENIED = "denied"
    RESUMED = "resumed"
    CAPTURE_REQUESTED = "capture_requested"
    VOID_REQUESTED = "void_requested"
    EXPIRING = "expiring"
    RELEASED = "released"
    REFUND_REQUESTED = "refund_requested"
    REFUND_PENDING = "refund_pending"
    REFUND_SUCCEEDED = "refund_succeeded"
    REFUND_FAILED = "refund_failed"
    REFUND_LOST = "refund_lost"
    REFUND_NOT_FOUND = "refund_not_found"
    LATE_REFUND_REFUSED = "late_refund_refused"


class Risk(StrEnum):
    """What the fraud check said of a payment. UNCHECKED: it did not answer, and the amount was small."""

    ALLOWED = "allowed"
    REVIEW = "review"
    UNCHECKED = "unchecked"
    DENIED = "denied"


class Source(StrEnum):
    """Who brought the evidence."""

    CREATE = "create"
    WEBHOOK = "webhook"
    ACCESS = "access"
    RECHECK = "recheck"
    EXPIRY = "expiry"
    MERCHANT = "merchant"
    POLICY = "policy"


FETCHED = frozenset({Source.ACCESS, Source.RECHECK, Source.EXPIRY})
"""Sources that asked the PSP for the state of the operation, rather than being told."""

WITH_MONEY = frozenset(
    {
        EvidenceKind.AUTHORIZED,
        EvidenceKind.CAPTURED,
        EvidenceKind.CAPTURE_REQUESTED,
        EvidenceKind.DISPUTED,
        EvidenceKind.DISPUTE_WON,
        EvidenceKind.DISPUTE_LOST,
        EvidenceKind.REFUND_REQUESTED,
        EvidenceKind.REFUND_PENDING,
        EvidenceKind.REFUND_SUCCEEDED,
        EvidenceKind.REFUND_FAILED,
    }
)
"""Kinds that name an amount."""


DISPUTES = frozenset({EvidenceKind.DISPUTED, EvidenceKind.DISPUTE_WON, EvidenceKind.DISPUTE_LOST})
"""Kinds that are about a dispute, whose reference is the dispute's."""


class Finding(StrEnum):
    """What a person has to look at."""

    EVIDENCE_MISMATCH = "evidence_mismatch"
    OUTCOME_UNKNOWN = "outcome_unknown"
    UNMATCHED_EVENT = "unmatched_event"
    REFUND_OUTCOME_UNKNOWN = "refund_outcome_unknown"
    LATE_REFUND_FAILED = "late_refund_failed"
    VOID_REFUSED = "void_refused"
    DISPUTE = "dispute"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One thing learned about a payment.

    `operation_id` is the operation that opened the payment: it names the object at the PSP. `reference` is the PSP's name of that
    object, of a refund, or of a dispute; `code` a decline code. `money` is set exactly for the kinds `WITH_MONEY`;
    `capture_before` may come with AUTHORIZED; `requested_id` is the new operation of a request, `refund_id` the refund it is
    about; `rerouted_to` the account that is asked next, by a new operation. `risk` comes with what followed the fraud check.
    """

    kind: EvidenceKind
    source: Source
    psp_account_id: PspAccountId
    operation_id: OperationId
    reference: str | None = None
    payment_url: str | None = None
    money: Money | None = None
    code: str | None = None
    capture_before: datetime | None = None
    requested_id: OperationId | None = None
    refund_id: RefundId | None = None
    rerouted_to: PspAccountId | None = None
    risk: Risk | None = None

    def __post_init__(self) -> None:
        assert (self.money is not None) == (self.kind in WITH_MONEY)
