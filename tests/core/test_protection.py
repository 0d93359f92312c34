"""Breaker, adaptive concurrency and slots, and their laws."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from core.breaker import CALLS_MIN, OPEN_SECONDS, WINDOW_SECONDS, Admission, Breaker, BreakerState
from core.throttling import AdaptiveLimit, Slots


def fail(breaker: Breaker, times: int, *, now: float = 0.0) -> None:
    for _ in range(times):
        breaker.record(breaker.admit(now=now), failed=True, now=now)


def test_it_opens_at_half_of_twenty_and_not_before() -> None:
    breaker = Breaker()
    for number in range(CALLS_MIN - 1):
        assert not breaker.record(Admission.CALL, failed=number % 2 == 0, now=0.0)
    assert breaker.record(Admission.CALL, failed=True, now=0.0)
    assert breaker.state(now=0.0) is BreakerState.OPEN
    assert breaker.admit(now=OPEN_SECONDS - 0.01) is Admission.REFUSED


def test_few_failures_among_many_calls_keep_it_closed() -> None:
    breaker = Breaker()
    for number in range(1_000):
        breaker.record(Admission.CALL, failed=number % 3 == 0, now=number / 100)
    assert breaker.state(now=10.0) is BreakerState.CLOSED


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    fail(breaker, CALLS_MIN - 1)
    assert not breaker.record(Admission.CALL, failed=True, now=WINDOW_SECONDS + 1)
    assert breaker.state(now=WINDOW_SECONDS + 1) is BreakerState.CLOSED


def test_one_probe_decides() -> None:
    breaker = Breaker()
    fail(breaker, CALLS_MIN)
    now = OPEN_SECONDS + 1
    assert breaker.state(now=now) is BreakerState.HALF_OPEN
    assert breaker.admit(now=now) is Admission.PROBE
    assert breaker.admit(now=now) is Admission.REFUSED
    breaker.record(Admission.CALL, failed=False, now=now)  # it was admitted before the breaker opened
    assert breaker.record(Admission.PROBE, failed=True, now=now)
    assert breaker.state(now=now + OPEN_SECONDS - 1) is BreakerState.OPEN

    later = now + OPEN_SECONDS
    assert breaker.admit(now=later) is Admission.PROBE
    breaker.withdraw(Admission.PROBE)
    assert breaker.admit(now=later) is Admission.PROBE
    breaker.record(Admission.PROBE, failed=False, now=later)
    assert breaker.state(now=later) is BreakerState.CLOSED


@given(st.lists(st.booleans(), min_size=CALLS_MIN, max_size=200))
def test_a_breaker_opens_with_the_first_failure_that_makes_half_of_enough(results: list[bool]) -> None:
    breaker, failures = Breaker(), 0
    for calls, failed in enumerate(results, start=1):
        failures += failed
        opened = breaker.record(breaker.admit(now=1.0), failed=failed, now=1.0)
        assert opened == (failed and calls >= CALLS_MIN and 2 * failures >= calls)
        if opened:
            assert breaker.state(now=1.0) is BreakerState.OPEN
            return
    assert breaker.state(now=1.0) is BreakerState.CLOSED


def test_concurrency_is_halved_once_a_second_and_grows_back() -> None:
    limit = AdaptiveLimit(ceiling=100, limit=100.0)
    limit.cut(now=0.0)
    limit.cut(now=0.5)
    assert limit.limit == 50
    limit.cut(now=1.0)
    assert limit.limit == 25
    for _ in range(10_000):
        limit.grow()
    assert limit.limit == 100
    limit.set_ceiling(10)
    assert limit.limit == 10
    for second in range(20):
        limit.cut(now=100.0 + second)
    assert limit.limit == 1


@given(st.lists(st.floats(0.0, 0.3), min_size=1, max_size=100), st.integers(1, 50))
def test_slots_are_never_closer_than_their_interval(pauses: list[float], count: int) -> None:
    slots = Slots(interval_seconds=0.1, next_at=0.0, ends_at=0.1 * (count - 0.5))
    now, taken = 0.0, list[float]()
    for pause in pauses:
        now += pause
        at = slots.take(now=now, before=float("inf"))
        if at is not None:
            taken.append(at)
            assert at >= now
    assert len(taken) <= count
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in pairwise(taken))


def test_a_slot_that_is_too_late_is_left_to_others() -> None:
    slots = Slots(interval_seconds=1.0, next_at=5.0, ends_at=9.5)
    assert slots.take(now=0.0, before=1.0) == 5.0
    assert slots.take(now=0.0, before=10.0) == 5.0
    assert slots.take(now=0.0, before=10.0) == 6.0
