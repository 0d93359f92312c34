"""Money, ledger, card numbers and identifiers."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.card_numbers import contains_card_number
from core.errors import InvalidId, InvalidMoney, UnbalancedTransfer
from core.evidence import EvidenceKind
from core.ids import PAYMENT, decode_id, encode_id
from core.ledger import Posting, Transfer, TransferKind, transfer_of
from core.money import AMOUNT_MINOR_MAX, CURRENCY_EXPONENTS, Money, payable
from core.transition import apply
from tests.support.domain import NOW, a_payment, evidence

ANY_MONEY = st.builds(Money, st.integers(-(10**15), 10**15), st.sampled_from(["EUR", "JPY", "TND"]))


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (1_990, "EUR", "19.90 EUR"),
        (5, "EUR", "0.05 EUR"),
        (-5, "EUR", "-0.05 EUR"),
        (1_990, "JPY", "1990 JPY"),
        (1_990, "TND", "1.990 TND"),
    ],
)
def test_money_reads_as_people_write_it(amount: int, currency: str, text: str) -> None:
    assert str(Money(amount, currency)) == text


@pytest.mark.parametrize(
    ("amount", "currency"), [(0, "EUR"), (-1, "EUR"), (AMOUNT_MINOR_MAX + 1, "EUR"), (1, "EURO"), (1, "eur")]
)
def test_invalid_amounts_are_refused(amount: int, currency: str) -> None:
    with pytest.raises(InvalidMoney):
        payable(amount, currency)


@pytest.mark.parametrize("amount", [1.0, True, "1"])
def test_an_amount_is_an_int(amount: object) -> None:
    with pytest.raises(InvalidMoney):
        Money(amount, "EUR")  # type: ignore[arg-type]


def test_the_exponents_are_those_of_iso_4217() -> None:
    assert len(CURRENCY_EXPONENTS) > 140
    assert [CURRENCY_EXPONENTS[code] for code in ("EUR", "JPY", "KWD", "ISK", "UGX")] == [2, 0, 3, 0, 0]


@given(st.lists(ANY_MONEY, min_size=1, max_size=5))
def test_a_transfer_sums_to_zero_or_does_not_exist(amounts: list[Money]) -> None:
    debits = [Posting("a", Money(-money.amount_minor, money.currency)) for money in amounts]
    credits_ = [Posting("b", money) for money in amounts]
    assert Transfer(uuid4(), TransferKind.CHARGE, (*debits, *credits_)).postings
    off_by_one = Posting("c", Money(1, amounts[0].currency))
    with pytest.raises(UnbalancedTransfer):
        Transfer(uuid4(), TransferKind.CHARGE, (*debits, *credits_, off_by_one))


def test_a_charge_credits_the_merchant_what_was_captured() -> None:
    change = apply(a_payment(), evidence(EvidenceKind.CAPTURED), now=NOW)
    assert change is not None
    transfer = transfer_of(change)
    assert transfer is not None
    assert [(posting.account.partition(":")[0], posting.money.amount_minor) for posting in transfer.postings] == [
        ("merchant_available", 1_990),
        ("psp_receivable", -1_990),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "4242424242424242",
        "pay 4242 4242 4242 4242 now",
        "5555-5555-5555-4444",
        "378282246310005",
        "6011111111111117",
        "2223003122003222",
    ],
)
def test_card_numbers_are_seen(text: str) -> None:
    assert contains_card_number(text)


@pytest.mark.parametrize("text", ["4242424242424241", "order 12345", "1234567890123456", "", "4242", "92424242424242424242424"])
def test_other_numbers_pass(text: str) -> None:
    assert not contains_card_number(text)


@given(st.uuids())
def test_identifiers_are_not_taken_for_card_numbers(value: UUID) -> None:
    assert not contains_card_number(f"order {value} {value.hex} {value.hex[:24]}") or value.hex[:24].isdigit()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4242424242424242abcdef", False),
        ("42424242-4242-4242-a242-424242424242", False),
        ("CC4242424242424242", True),
        ("card 4242424242424242, key 0198c5aa4242424242424242bb", True),
        ("4242-4242-4242-4242-abc", True),
    ],
)
def test_hexadecimal_identifiers_pass(text: str, *, found: bool) -> None:
    assert contains_card_number(text) is found


@given(st.uuids())
def test_ids_go_out_and_come_back(value: UUID) -> None:
    assert decode_id(PAYMENT, encode_id(PAYMENT, value)) == value


@pytest.mark.parametrize(
    "text", ["", "pay_", "pay_123", "mer_" + "0" * 32, "pay_" + "G" * 32, "pay_" + "A" * 32, "pay_" + "٠" * 32]
)
def test_invalid_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidId):
        decode_id(PAYMENT, text)
