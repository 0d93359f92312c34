"""What is learned about a payment, and from whom: the one form in which all of it meets the transition function."""

from dataclasses import dataclass
from enum import StrEnum

from core.ids import OperationId, PspAccountId
from core.money import Money


class EvidenceKind(StrEnum):
    """What was learned. The first seven are facts at the PSP; the others are about our own asking.

    NOT_FOUND and UNANSWERED are looks that brought nothing; LOST, UNREACHABLE and REJECTED are ends of the call that should
    have opened the payment.
    """

    OPENED = "opened"
    ATTEMPT_FAILED = "attempt_failed"
    AUTHORIZED = "authorized"
    CAPTURED = "captured"
    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELED = "canceled"
    NOT_FOUND = "not_found"
    UNANSWERED = "unanswered"
    LOST = "lost"
    UNREACHABLE = "unreachable"
    REJECTED = "rejected"


class Source(StrEnum):
    """Who brought the evidence."""

    CREATE = "create"
    WEBHOOK = "webhook"
    ACCESS = "access"
    RECHECK = "recheck"
    EXPIRY = "expiry"


FETCHED = frozenset({Source.ACCESS, Source.RECHECK, Source.EXPIRY})
"""Sources that asked the PSP for the state of the operation, rather than being told."""


class Finding(StrEnum):
    """What a person has to look at."""

    EVIDENCE_MISMATCH = "evidence_mismatch"
    OUTCOME_UNKNOWN = "outcome_unknown"
    UNMATCHED_EVENT = "unmatched_event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One thing learned about one operation of a payment.

    `money` is set exactly for AUTHORIZED and CAPTURED; `reference` is the PSP's name of the object; `code` is a decline code.
    """

    kind: EvidenceKind
    source: Source
    psp_account_id: PspAccountId
    operation_id: OperationId
    reference: str | None = None
    payment_url: str | None = None
    money: Money | None = None
    code: str | None = None

    def __post_init__(self) -> None:
        assert (self.money is not None) == (self.kind in (EvidenceKind.AUTHORIZED, EvidenceKind.CAPTURED))
