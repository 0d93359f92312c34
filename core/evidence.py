"""Evidence: the one form in which facts about a payment reach the transition functions, whatever their source."""

from datetime import datetime
from enum import StrEnum

import msgspec

from core.ids import OperationId, PspAccountId, RefundId
from core.money import Money


class EvidenceKind(StrEnum):
    """The kind of fact.

    The kinds listed first are facts at the PSP. NOT_FOUND and UNANSWERED are fetches that brought nothing. LOST, UNREACHABLE and
    REJECTED are ends of a call of ours. REROUTED is the choice of another PSP account after one that provably received nothing.
    RESUMED says that another request has taken the payment up. DENIED is the fraud check's refusal, before any PSP was asked. The
    requests are a merchant's wishes, before the PSP is asked. EXPIRING and RELEASED come with the passing of time. Kinds that
    begin with REFUND concern one refund and belong to `core.refund_transition`.
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
    """The fraud check's verdict on a payment. UNCHECKED: it did not answer, and the amount was small."""

    ALLOWED = "allowed"
    REVIEW = "review"
    UNCHECKED = "unchecked"
    DENIED = "denied"


class Source(StrEnum):
    """The origin of the evidence."""

    CREATE = "create"
    WEBHOOK = "webhook"
    ACCESS = "access"
    RECHECK = "recheck"
    EXPIRY = "expiry"
    MERCHANT = "merchant"
    POLICY = "policy"
    OPERATOR = "operator"


FETCHED = frozenset({Source.ACCESS, Source.RECHECK, Source.EXPIRY})
"""Sources that fetched the state of the operation from the PSP, rather than being told."""

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
"""Kinds that carry an amount."""


DISPUTES = frozenset({EvidenceKind.DISPUTED, EvidenceKind.DISPUTE_WON, EvidenceKind.DISPUTE_LOST})
"""Kinds about a dispute; their reference is the dispute's."""


class Finding(StrEnum):
    """The reason for which a person has to look."""

    EVIDENCE_MISMATCH = "evidence_mismatch"
    OUTCOME_UNKNOWN = "outcome_unknown"
    UNMATCHED_EVENT = "unmatched_event"
    REFUND_OUTCOME_UNKNOWN = "refund_outcome_unknown"
    LATE_REFUND_FAILED = "late_refund_failed"
    VOID_REFUSED = "void_refused"
    DISPUTE = "dispute"
    OPERATOR_CONTRADICTED = "operator_contradicted"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One fact about a payment.

    `operation_id` is the operation that opened the payment, which is our name for the object at the PSP. `reference` is the PSP's
    name for that object, for a refund or for a dispute. `code` is a decline code. `money` is set exactly for the kinds in
    `WITH_MONEY`. `capture_before` may come with AUTHORIZED. `requested_id` is the new operation of a request, `refund_id` the
    refund concerned, `rerouted_to` the account that is asked next, by a new operation. `risk` is set for what follows the fraud
    check.
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
