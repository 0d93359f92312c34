"""Frozen dataclasses made quick are still what they were."""

import dataclasses
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.money import Money
from core.payment import Payment, Status
from core.values import quick, replace
from tests.support.domain import a_payment


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """With all that a field can have."""

    name: str
    weight: int = 1
    marks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.weight > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """The same, as dataclasses makes it."""

    name: str
    weight: int = 1
    marks: list[str] = field(default_factory=list)


def test_a_quick_value_is_still_frozen_equal_and_checked() -> None:
    parcel = Parcel(name="a")
    assert parcel == Parcel(name="a", weight=1, marks=[])
    assert parcel.marks is not Parcel(name="a").marks
    assert repr(parcel) == repr(Plain(name="a")).replace("Plain", "Parcel")
    assert dataclasses.asdict(parcel) == dataclasses.asdict(Plain(name="a"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        parcel.weight = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del parcel.weight
    with pytest.raises(AssertionError):
        Parcel(name="a", weight=0)
    with pytest.raises(AssertionError):
        replace(parcel, weight=0)
    with pytest.raises(TypeError):
        Parcel()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Parcel("a")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        replace(parcel, colour="red")  # type: ignore[call-arg]


@given(st.text(), st.integers(min_value=1), st.lists(st.text()))
def test_a_copy_is_what_dataclasses_would_make(name: str, weight: int, marks: list[str]) -> None:
    parcel = Parcel(name="before", marks=["kept"])
    assert replace(parcel, name=name, weight=weight) == dataclasses.replace(parcel, name=name, weight=weight)
    assert replace(parcel, marks=marks).marks is marks
    assert replace(parcel) == parcel
    assert replace(parcel) is not parcel


def test_a_payment_is_copied_field_for_field() -> None:
    before = a_payment()
    after = replace(before, status=Status.SUCCEEDED, captured_minor=before.money.amount_minor)
    assert type(after) is Payment
    assert after == dataclasses.replace(before, status=Status.SUCCEEDED, captured_minor=before.money.amount_minor)
    assert hash(Money(1, "EUR")) == hash(Money(1, "EUR"))
    assert replace(Money(1, "EUR"), amount_minor=2) == Money(2, "EUR")
