"""The transition function: its table, its laws, its handling of money."""

from datetime import timedelta
from itertools import product
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from core.errors import IllegalTransition
from core.evidence import Evidence, EvidenceKind, Finding, Source
from core.ids import OperationId, PspAccountId
from core.ledger import TransferKind, transfer_of
from core.money import Money
from core.payment import FINAL, Change, Payment, Status, is_provisionally_declined
from core.transition import TRANSITIONS, apply
from tests.support.domain import NOW, REQUESTS, a_payment, evidence


def run(payment: Payment, facts: list[Evidence]) -> tuple[Payment, list[Change]]:
    changes = []
    for fact in facts:
        change = apply(payment, fact, now=NOW)
        if change is not None:
            changes.append(change)
            payment = change.after
    return payment, changes


@pytest.mark.parametrize(("status", "kind"), list(product(Status, EvidenceKind)))
def test_every_pair_is_in_the_table_or_raises(status: Status, kind: EvidenceKind) -> None:
    payment, fact = a_payment(status), evidence(kind)
    if kind in TRANSITIONS[status]:
        change = apply(payment, fact, now=NOW)
        allowed = {status, TRANSITIONS[status][kind]}
        assert change is None or change.after.status in allowed
        assert change is None or change.after.version == payment.version + 1
    else:
        with pytest.raises(IllegalTransition):
            apply(payment, fact, now=NOW)


def test_refused_transitions_are_those_that_cannot_happen() -> None:
    kinds = [kind for kind in EvidenceKind if not kind.startswith("refund")]
    missing = {(status, kind) for status, kind in product(Status, kinds) if kind not in TRANSITIONS[status]}
    ours = {
        EvidenceKind.UNREACHABLE,
        EvidenceKind.REJECTED,
        EvidenceKind.EXPIRING,
        EvidenceKind.RELEASED,
        EvidenceKind.LATE_REFUND_REFUSED,
        EvidenceKind.REROUTED,
        EvidenceKind.DENIED,
        EvidenceKind.RESUMED,
        *REQUESTS,
    }
    assert all(kind in ours for _, kind in missing)
    assert (Status.SUCCEEDED, EvidenceKind.UNREACHABLE) in missing
    assert {status for status in Status if EvidenceKind.CAPTURE_REQUESTED in TRANSITIONS[status]} == {Status.AUTHORIZED}


_OPENED = evidence(EvidenceKind.OPENED, Source.CREATE, payment_url="https://psp/pay")
_FAILED = evidence(EvidenceKind.ATTEMPT_FAILED, code="card_declined")
_LOST = evidence(EvidenceKind.LOST, Source.CREATE, reference=None)
_HISTORIES = {
    "paid": [EvidenceKind.CAPTURED],
    "authorized": [EvidenceKind.AUTHORIZED],
    "authorized, then captured": [EvidenceKind.AUTHORIZED, EvidenceKind.CAPTURED],
    "authorized, then voided": [EvidenceKind.AUTHORIZED, EvidenceKind.CANCELED],
    "expired": [EvidenceKind.EXPIRED],
    "expired, yet paid": [EvidenceKind.EXPIRED, EvidenceKind.CAPTURED],
    "canceled": [EvidenceKind.CANCELED],
    "declined": [EvidenceKind.DECLINED],
}


@given(st.sampled_from(sorted(_HISTORIES)), st.booleans(), st.booleans(), st.data())
def test_evidence_of_one_history_converges_in_any_order(name: str, failed: bool, lost: bool, data: st.DataObject) -> None:
    facts = [evidence(kind) for kind in _HISTORIES[name]]
    facts += [_OPENED] + [_FAILED] * failed + [_LOST] * lost
    copies = data.draw(st.lists(st.sampled_from(facts), max_size=4))
    shuffled = data.draw(st.permutations(facts + copies))

    expected, expected_changes = _settled(facts)
    payment, changes = _settled(shuffled)

    assert _essence(payment) == _essence(expected)
    assert _postings(changes) == _postings(expected_changes)
    assert len(_postings(changes)) <= 1
    assert (payment.captured_minor > 0) == (payment.status is Status.SUCCEEDED)


def _settled(facts: list[Evidence]) -> tuple[Payment, list[Change]]:
    """Apply the facts and then fetch again, as the follow-up job does for a decline."""
    payment, changes = run(a_payment(), facts)
    if is_provisionally_declined(payment):
        payment, more = run(payment, [evidence(EvidenceKind.DECLINED, Source.RECHECK)])
        changes += more
    return payment, changes


def _essence(payment: Payment) -> tuple[object, ...]:
    return payment.status, payment.captured_minor, payment.reference, payment.payment_url


def _postings(changes: list[Change]) -> list[object]:
    return [transfer for change in changes if (transfer := transfer_of(change))]


def test_a_decline_is_provisional_until_a_later_fetch_agrees() -> None:
    told, _ = run(a_payment(), [evidence(EvidenceKind.DECLINED, code="stolen")])
    assert (told.status, told.decline_code, told.due_at) == (Status.PENDING, "stolen", NOW + timedelta(seconds=15))
    told_again, _ = run(told, [evidence(EvidenceKind.DECLINED)])
    assert told_again == told
    confirmed, _ = run(told, [evidence(EvidenceKind.DECLINED, Source.RECHECK)])
    assert (confirmed.status, confirmed.did_check_again, confirmed.due_at) == (Status.DECLINED, True, None)
    flipped, _ = run(told, [evidence(EvidenceKind.CAPTURED, Source.RECHECK)])
    assert (flipped.status, flipped.decline_code) == (Status.SUCCEEDED, None)


def test_money_wins_late() -> None:
    payment, _ = run(a_payment(), [evidence(EvidenceKind.EXPIRED)])
    assert payment.status is Status.EXPIRED
    payment, changes = run(payment, [evidence(EvidenceKind.CAPTURED)])
    assert (payment.status, payment.late) == (Status.SUCCEEDED, True)
    assert transfer_of(changes[0]) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"money": Money(1, "EUR")},
        {"money": Money(1_990, "USD")},
        {"reference": "int_2"},
        {"psp_account_id": PspAccountId(UUID(int=99))},
        {"operation_id": OperationId(UUID(int=99))},
    ],
)
def test_money_that_does_not_match_goes_to_suspense(wrong: dict[str, object]) -> None:
    payment, _ = run(a_payment(), [_OPENED])
    strange = replace(evidence(EvidenceKind.CAPTURED), **wrong)
    payment, changes = run(payment, [strange, strange])
    assert payment.status is Status.PENDING
    assert {change.finding for change in changes} == {Finding.EVIDENCE_MISMATCH}
    assert payment.due_at is None, "a person has to look, a job cannot help"
    transfer = transfer_of(changes[0])
    assert transfer is not None
    assert transfer.kind is TransferKind.SUSPENSE
    assert transfer == transfer_of(changes[1]), "the ledger's key must refuse a repetition"
    another = apply(payment, replace(strange, reference="int_3"), now=NOW)
    assert another is not None
    second = transfer_of(another)
    assert second is not None
    assert second.id != transfer.id
    settled, _ = run(payment, [evidence(EvidenceKind.CAPTURED)])
    assert settled.status is Status.SUCCEEDED


def test_evidence_of_another_object_closes_nothing() -> None:
    payment, _ = run(a_payment(), [_OPENED])
    strange = replace(evidence(EvidenceKind.EXPIRED), operation_id=OperationId(UUID(int=99)))
    payment, _ = run(payment, [strange])
    assert payment.status is Status.PENDING


def test_an_unknown_payment_is_rechecked_by_the_schedule_and_then_given_to_a_person() -> None:
    payment, _ = run(a_payment(), [_LOST])
    assert (payment.status, payment.due_at) == (Status.UNKNOWN, NOW + timedelta(seconds=5))
    waits = []
    finding = None
    while payment.due_at is not None:
        change = apply(payment, evidence(EvidenceKind.NOT_FOUND, Source.RECHECK, reference=None), now=NOW)
        assert change is not None
        payment, finding = change.after, change.finding
        waits.append((payment.due_at - NOW).total_seconds() if payment.due_at else None)
    assert waits == [30, 120, 600, 3_600, 86_400, 86_400, 86_400, 86_400, 86_400, None]
    assert finding is Finding.OUTCOME_UNKNOWN
    assert payment.status is Status.UNKNOWN


def test_a_readers_fetch_without_news_does_not_count() -> None:
    payment, _ = run(a_payment(), [_LOST])
    assert apply(payment, evidence(EvidenceKind.NOT_FOUND, Source.ACCESS, reference=None), now=NOW) is None


def test_fetches_without_news_end_with_one_finding() -> None:
    opened, _ = run(a_payment(), [_OPENED])
    overdue = opened.expires_at + timedelta(seconds=1)
    payment, findings = opened, []
    for _ in range(30):
        change = apply(payment, evidence(EvidenceKind.UNANSWERED, Source.RECHECK, reference=None), now=overdue)
        if change is not None:
            payment = change.after
            findings += [change.finding] if change.finding else []
    assert findings == [Finding.OUTCOME_UNKNOWN]
    assert (payment.status, payment.checks, payment.due_at) == (Status.PENDING, 10, None)


def test_nothing_is_due_once_it_is_final() -> None:
    for kind in (EvidenceKind.CAPTURED, EvidenceKind.EXPIRED, EvidenceKind.CANCELED):
        payment, _ = run(a_payment(), [_OPENED, evidence(kind)])
        assert payment.status in FINAL
        assert payment.due_at is None


def test_payments_and_money_do_not_change() -> None:
    payment = a_payment()
    for value, name in ((payment, "version"), (payment.money, "amount_minor")):
        with pytest.raises(AttributeError):
            setattr(value, name, 2)
    assert a_payment() == payment
    assert hash(a_payment().money) == hash(payment.money)
