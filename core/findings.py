"""Findings as work for a person: the states of one, and the mends that each kind allows.

Invariants: a finding is closed by an explanation or by a mend, never without a note; every kind has at least one mend.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from core.evidence import Finding


class FindingState(StrEnum):
    """The state of a finding. EXPLAINED: nothing has to be done, and the note says why. FIXED: what was wrong is mended."""

    OPEN = "OPEN"
    TAKEN = "TAKEN"
    EXPLAINED = "EXPLAINED"
    FIXED = "FIXED"


FINDING_TRANSITIONS: Mapping[FindingState, frozenset[FindingState]] = {
    FindingState.OPEN: frozenset({FindingState.TAKEN, FindingState.EXPLAINED, FindingState.FIXED}),
    FindingState.TAKEN: frozenset({FindingState.TAKEN, FindingState.EXPLAINED, FindingState.FIXED}),
    FindingState.EXPLAINED: frozenset(),
    FindingState.FIXED: frozenset(),
}
"""The states that may follow each state. A taken one may be taken over by another operator."""


class Mend(msgspec.Struct, frozen=True):
    """Something that an operator can do about a finding. In `command`, {payment} and {finding} stand for their ids."""

    when: str
    command: str


_EXPLAIN = Mend("nothing has to be done", "florin finding explain {finding} --reason …")
_SUSPENSE = (
    Mend("the money is another payment's", "florin suspense assign {payment} --to pay_… --reason …"),
    Mend("the money is the merchant's", "florin suspense credit {payment} --reason …"),
    Mend("you have returned it at the PSP", "florin suspense return {payment} --reference … --reason …"),
)

MENDS: Mapping[Finding, tuple[Mend, ...]] = {
    Finding.OUTCOME_UNKNOWN: (
        Mend("the PSP's dashboard shows it as paid", "florin payment resolve {payment} --captured --reference … --reason …"),
        Mend("the PSP has no such charge, or it was declined", "florin payment resolve {payment} --not-charged --reason …"),
    ),
    Finding.REFUND_OUTCOME_UNKNOWN: (
        Mend("the PSP's dashboard shows the refund", "florin payment resolve {payment} --refunded --reference … --reason …"),
        Mend("the PSP has no such refund", "florin payment resolve {payment} --not-refunded --reason …"),
    ),
    Finding.EVIDENCE_MISMATCH: (*_SUSPENSE, _EXPLAIN),
    Finding.UNMATCHED_EVENT: (
        Mend("the payment exists by now", "florin psp events retry EVENT, then florin finding resolve {finding} --reason …"),
        _EXPLAIN,
    ),
    Finding.LATE_REFUND_FAILED: (
        Mend("the customer still gets it back", "florin payment refund {payment} --reason …"),
        Mend("the merchant keeps the money", "florin finding explain {finding} --reason …"),
    ),
    Finding.VOID_REFUSED: (
        Mend("you have released it at the PSP, or it has ended by itself", "florin finding resolve {finding} --reason …"),
    ),
    Finding.DISPUTE: (
        Mend("you have answered it at the PSP, which will tell its end", "florin finding resolve {finding} --reason …"),
        _EXPLAIN,
    ),
    Finding.OPERATOR_CONTRADICTED: (
        Mend("the merchant knows that the PSP's word counts", "florin finding resolve {finding} --reason …"),
        Mend("the customer has to get money back", "florin payment refund {payment} --reason …"),
    ),
}
"""The mends of each kind of finding."""

MENDED_BY_OUTCOME = (Finding.OUTCOME_UNKNOWN, Finding.REFUND_OUTCOME_UNKNOWN)
"""The kinds that are mended as soon as the outcome is known, whoever tells it."""
