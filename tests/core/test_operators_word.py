"""The word of operators, against the PSP's own: whatever they say in between, the PSP's words lead to the same books."""

from collections import Counter
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from core.errors import IllegalTransition
from core.events import event_type_of
from core.evidence import Evidence, EvidenceKind, Finding, Source
from core.findings import FINDING_TRANSITIONS, MENDS, FindingState
from core.ids import RefundId
from core.ledger import Transfer, TransferKind, WalletKind, transfer_of
from core.operators import ACTS, RIGHTS, SERVICE_ROLES, OperatorRole, Right, may
from core.operators_word import FROM_SUSPENSE
from core.payment import Change, OperationKind, Payment, PendingOperation, Status, Terms
from core.refund import Refund, RefundStatus
from core.refund_transition import apply_refund
from core.transition import apply
from tests.support.domain import ACCOUNT, MONEY, NOW, REQUESTED, a_payment, evidence

CAPTURED, CANCELED = (evidence(kind, Source.OPERATOR, reference=None) for kind in (EvidenceKind.CAPTURED, EvidenceKind.CANCELED))
RELEASED = evidence(EvidenceKind.RELEASED, Source.POLICY, reference=None)
PSP_WORDS = [
    evidence(kind, source)
    for kind in (
        EvidenceKind.OPENED,
        EvidenceKind.AUTHORIZED,
        EvidenceKind.CAPTURED,
        EvidenceKind.DECLINED,
        EvidenceKind.EXPIRED,
        EvidenceKind.CANCELED,
        EvidenceKind.NOT_FOUND,
    )
    for source in (Source.WEBHOOK, Source.RECHECK)
    if not (kind is EvidenceKind.NOT_FOUND and source is Source.WEBHOOK)
]
TERMS = [Terms(), Terms(fee_basis_points=150, fee_fixed_minor=25), Terms(settlement_delay_seconds=3_600, fee_fixed_minor=10)]


class Books:
    """A payment with the ledger that follows from its changes."""

    def __init__(self, terms: Terms) -> None:
        self.payment = replace(a_payment(Status.UNKNOWN), terms=terms, due_at=NOW)
        self.accounts: Counter[str] = Counter()
        self.transfers: set[tuple[UUID, TransferKind]] = set()
        self.findings: list[Finding] = []

    def hear(self, said: Evidence) -> None:
        """Apply one fact; one that cannot be applied changes nothing."""
        if said.kind is EvidenceKind.RELEASED and self.payment.release_at is None:
            return
        try:
            change = apply(self.payment, said, now=NOW)
        except IllegalTransition:
            return
        if change is None:
            return
        pending = self.accounts[WalletKind.PENDING]
        self.post(transfer_of(change, pending_minor=pending))
        self.payment = change.after
        if change.finding is not None:
            self.findings.append(change.finding)

    def post(self, transfer: Transfer | None) -> None:
        if transfer is not None:
            assert (transfer.id, transfer.kind) not in self.transfers, "posted once"
            self.transfers.add((transfer.id, transfer.kind))
            for posting in transfer.postings:
                self.accounts[posting.account] += posting.money.amount_minor

    @property
    def totals(self) -> dict[str, int]:
        """The balances, the merchant's wallets together."""
        found: Counter[str] = Counter()
        for account, amount in self.accounts.items():
            found["wallets" if account in list(WalletKind) else account] += amount
        return {account: amount for account, amount in found.items() if amount}


@given(
    st.lists(st.sampled_from(PSP_WORDS), max_size=8),
    st.lists(st.tuples(st.integers(0, 8), st.sampled_from([CAPTURED, CANCELED, RELEASED])), max_size=6),
    st.sampled_from(TERMS),
)
def test_the_psps_word_leads_to_the_same_books_whatever_operators_say(
    words: list[Evidence], said: list[tuple[int, Evidence]], terms: Terms
) -> None:
    alone, together = Books(terms), Books(terms)
    for number, word in enumerate([*words, None]):
        for _, one in [one for one in said if one[0] == number]:
            together.hear(one)
        if word is not None:
            alone.hear(word)
            together.hear(word)
    is_told = any(word.kind is EvidenceKind.CAPTURED for word in words)
    if is_told or not together.payment.is_operators_word:
        assert together.totals == alone.totals
        assert (together.payment.status is Status.SUCCEEDED) == (alone.payment.status is Status.SUCCEEDED)
    assert together.payment.captured_minor == (MONEY.amount_minor if together.payment.status is Status.SUCCEEDED else 0)


def _said(*words: Evidence) -> Books:
    books = Books(Terms())
    for word in words:
        books.hear(word)
    return books


def _authorized(amount_minor: int | None = None) -> Payment:
    """An authorized payment whose capture was lost, until Florin gave up."""
    pending = PendingOperation(id=REQUESTED, kind=OperationKind.CAPTURE, amount_minor=amount_minor, since=NOW)
    return replace(a_payment(Status.AUTHORIZED), capture_before=NOW + timedelta(days=3), pending=pending)


def test_what_the_psp_tells_later_is_as_late_as_it_would_be_without_operators() -> None:
    declined, paid = evidence(EvidenceKind.DECLINED, Source.WEBHOOK), evidence(EvidenceKind.CAPTURED, Source.RECHECK)
    assert _said(CANCELED, declined, paid).payment.late is _said(declined, paid).payment.late is False
    over = _said(evidence(EvidenceKind.EXPIRED, Source.RECHECK))
    for books in (over, Books(Terms())):
        books.payment = replace(over.payment, due_at=None, pending=_authorized().pending)
    with pytest.raises(IllegalTransition, match="own word"):
        apply(over.payment, CANCELED, now=NOW)


def test_a_told_decline_of_an_authorized_payment_is_old_news() -> None:
    books = Books(Terms())
    books.payment = _authorized()
    books.hear(CAPTURED)
    books.hear(evidence(EvidenceKind.DECLINED, Source.WEBHOOK))
    assert (books.payment.status, books.findings) == (Status.SUCCEEDED, [])
    books.hear(evidence(EvidenceKind.DECLINED, Source.RECHECK))
    assert (books.payment.status, books.totals) == (Status.CANCELED, {})


def test_of_a_part_that_is_being_captured_only_the_psp_can_tell() -> None:
    for word in (CAPTURED, CANCELED):
        with pytest.raises(IllegalTransition, match="a part of this payment"):
            apply(_authorized(400), word, now=NOW)
    assert apply(_authorized(MONEY.amount_minor), CAPTURED, now=NOW) is not None


def test_money_that_was_assigned_goes_back_to_suspense_when_the_psp_speaks() -> None:
    assigned = replace(CAPTURED, code=FROM_SUSPENSE)
    for word, wallets in ((EvidenceKind.CANCELED, 0), (EvidenceKind.CAPTURED, MONEY.amount_minor)):
        books = _said(assigned, evidence(word, Source.RECHECK))
        assert books.totals["suspense"] == MONEY.amount_minor
        assert books.totals.get("wallets", 0) == wallets
        assert books.findings == [Finding.OPERATOR_CONTRADICTED]
        assert (books.payment.suspended, books.payment.from_suspense) == (True, False)


def test_a_refund_that_the_psp_has_accepted_is_the_psps_to_end() -> None:
    payment, refund = _refunding()
    accepted = replace(refund, is_accepted=True, status=RefundStatus.PENDING)
    with pytest.raises(IllegalTransition, match="has accepted this refund"):
        apply_refund(payment, accepted, _refund_word(EvidenceKind.REFUND_FAILED, Source.OPERATOR, refund), now=NOW)


def test_a_psp_that_contradicts_is_followed_with_a_finding() -> None:
    paid = evidence(EvidenceKind.CAPTURED, Source.WEBHOOK)
    closed = evidence(EvidenceKind.CANCELED, Source.RECHECK)
    confirmed = _said(CAPTURED, paid)
    assert (confirmed.findings, confirmed.payment.status) == ([], Status.SUCCEEDED)
    assert (confirmed.payment.reference, confirmed.payment.is_operators_word) == ("int_1", False)
    undone = _said(CAPTURED, closed)
    assert (undone.findings, undone.payment.status, undone.totals) == ([Finding.OPERATOR_CONTRADICTED], Status.CANCELED, {})
    late = _said(CANCELED, paid)
    assert (late.findings, late.payment.status, late.payment.late) == ([Finding.OPERATOR_CONTRADICTED], Status.SUCCEEDED, False)
    declined = _said(CAPTURED, evidence(EvidenceKind.DECLINED, Source.WEBHOOK))
    assert (declined.payment.status, declined.payment.decline_code, declined.totals) == (Status.UNKNOWN, "declined", {})
    assert declined.payment.due_at is not None, "it is confirmed by a fetch, as ever"


def test_an_operators_word_counts_only_where_the_psp_has_not_spoken() -> None:
    for status in (Status.SUCCEEDED, Status.DECLINED, Status.EXPIRED, Status.CANCELED):
        with pytest.raises(IllegalTransition, match="own word"):
            apply(a_payment(status), CANCELED, now=NOW)
    with pytest.raises(IllegalTransition, match="own word"):
        apply(replace(a_payment(Status.PENDING), due_at=NOW), CAPTURED, now=NOW)
    with pytest.raises(IllegalTransition, match="cannot say"):
        apply(a_payment(Status.UNKNOWN), evidence(EvidenceKind.EXPIRED, Source.OPERATOR), now=NOW)
    books = _said(CAPTURED)
    books.payment = replace(books.payment, refunded_minor=1)
    with pytest.raises(IllegalTransition, match="refunds or disputes"):
        apply(books.payment, CANCELED, now=NOW)
    kept = apply(books.payment, evidence(EvidenceKind.CANCELED, Source.RECHECK), now=NOW)
    assert kept is not None
    assert (kept.after.status, kept.finding) == (Status.SUCCEEDED, Finding.OPERATOR_CONTRADICTED)


def _refunding() -> tuple[Payment, Refund]:
    payment = replace(a_payment(Status.SUCCEEDED), refunded_minor=500)
    refund = Refund(
        id=RefundId(UUID(int=9)),
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
        psp_account_id=ACCOUNT,
        money=replace(MONEY, amount_minor=500),
        status=RefundStatus.UNKNOWN,
        created_at=NOW,
        updated_at=NOW,
        due_at=NOW,
    )
    return payment, refund


def _refund_word(kind: EvidenceKind, source: Source, refund: Refund) -> Evidence:
    return evidence(kind, source, reference=None, money=refund.money, refund_id=refund.id)


def _amount(change: Change | None) -> int:
    """The amount that a change moves in the merchant's wallet."""
    assert change is not None
    moved = transfer_of(change)
    return sum(one.money.amount_minor for one in moved.postings if one.account in list(WalletKind)) if moved else 0


@pytest.mark.parametrize(("word", "truth"), [("succeeded", "failed"), ("failed", "succeeded"), ("succeeded", "succeeded")])
def test_a_refund_by_operators_word_follows_the_psps(word: str, truth: str) -> None:
    payment, refund = _refunding()
    said = apply_refund(payment, refund, _refund_word(EvidenceKind(f"refund_{word}"), Source.OPERATOR, refund), now=NOW)
    assert said is not None
    assert said.refund is not None
    assert said.refund.is_operators_word
    told = _refund_word(EvidenceKind(f"refund_{truth}"), Source.WEBHOOK, refund)
    heard = apply_refund(said.after, said.refund, told, now=NOW + timedelta(days=1))
    assert heard is not None
    assert heard.refund is not None
    assert heard.refund.status == truth.upper()
    assert heard.finding == (None if word == truth else Finding.OPERATOR_CONTRADICTED)
    alone = apply_refund(payment, refund, told, now=NOW)
    assert _amount(said) + _amount(heard) == _amount(alone)
    assert alone is not None
    assert heard.after.refunded_minor == alone.after.refunded_minor
    assert apply_refund(heard.after, heard.refund, told, now=NOW) is None


def test_every_kind_of_finding_can_be_mended() -> None:
    assert set(MENDS) == set(Finding)
    for kind, mends in MENDS.items():
        assert mends, kind
        for mend in mends:
            assert mend.command.format(payment="pay_1", finding="fnd_1").startswith("florin "), mend
    assert {one for after in FINDING_TRANSITIONS.values() for one in after} | {FindingState.OPEN} == set(FindingState)


def test_an_outcome_that_stays_unknown_is_told_once() -> None:
    told, payment = [], replace(a_payment(Status.UNKNOWN), due_at=NOW)
    for _ in range(6):
        change = apply(payment, evidence(EvidenceKind.UNANSWERED, Source.RECHECK, reference=None), now=NOW)
        assert change is not None
        told.append(event_type_of(change))
        payment = replace(change.after, due_at=NOW)
    assert told == [None, None, "payment.outcome_unknown", None, None, None]


def test_roles_grow_and_programs_move_no_money() -> None:
    rights = [RIGHTS[role] for role in OperatorRole]
    assert all(less <= more for less, more in pairwise(rights))
    assert set(ACTS.values()) == set(Right)
    for act, right in ACTS.items():
        assert may(OperatorRole.ADMIN, act)
        assert not may(OperatorRole.VIEWER, act)
        assert right is not Right.MONEY or not any(may(role, act) for role in SERVICE_ROLES)
