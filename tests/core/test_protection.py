"""Breaker, adaptive concurrency and slots, and their laws."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from core.breaker import CALLS_MIN, OPEN_SECONDS, WINDOW_SECONDS, Admission, Breaker, BreakerState
from core.fair_queue import FairQueue, Urgency
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
        at = slots.take(now=now)
        if at is not None:
            taken.append(at)
            assert at >= now
    assert len(taken) <= count
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in pairwise(taken))


def test_a_slot_is_taken_at_once_only_when_its_time_has_come() -> None:
    slots = Slots(interval_seconds=1.0, next_at=5.0, ends_at=9.5)
    assert not slots.take_now(now=4.9)
    assert slots.take_now(now=5.0)
    assert not slots.take_now(now=5.0)
    assert slots.take(now=5.0) == 6.0
    assert not slots.take_now(now=9.6)


def a_queue(*calls: tuple[str, Urgency], waiting_max: int = 100) -> FairQueue[str]:
    queue = FairQueue[str](waiting_max)
    for number, (merchant, urgency) in enumerate(calls):
        queue.add(f"{merchant}{number}", merchant=merchant, urgency=urgency)
    return queue


def popped(queue: FairQueue[str]) -> list[str]:
    return [item for _ in range(len(queue)) if (item := queue.pop()) is not None]


def test_merchants_take_turns_and_the_urgent_go_first() -> None:
    i, b = Urgency.INTERACTIVE, Urgency.BATCH
    assert popped(a_queue(("a", i), ("a", i), ("a", i), ("b", i), ("c", i), ("b", i))) == ["a0", "b3", "c4", "a1", "b5", "a2"]
    assert popped(a_queue(("a", b), ("b", b), ("a", i), ("a", i))) == ["a2", "a3", "a0", "b1"]


def test_a_flood_of_the_urgent_leaves_a_tenth_to_the_others() -> None:
    queue = a_queue(*[("a", Urgency.INTERACTIVE)] * 40, ("b", Urgency.BACKGROUND), ("b", Urgency.BACKGROUND))
    served = popped(queue)
    assert [number for number, item in enumerate(served, start=1) if item.startswith("b")] == [10, 20]


def test_a_queue_is_bounded_for_all_and_for_each() -> None:
    queue = a_queue(*[("a", Urgency.BATCH)] * 2, waiting_max=4)
    assert not queue.has_room("a")
    assert queue.has_room("b")
    gone = queue.add("b", merchant="b", urgency=Urgency.BATCH)
    queue.remove(gone)
    queue.remove(gone)
    assert (len(queue), popped(queue)) == (2, ["a0", "a1"])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(list(Urgency))), max_size=40))
def test_what_is_ahead_is_never_less_than_what_is_served_before(calls: list[tuple[str, Urgency]]) -> None:
    """For the most urgent, of which nobody is served before their turn."""
    queue = a_queue(*calls)
    ahead = queue.ahead_of("a", Urgency.INTERACTIVE)
    queue.add("mine", merchant="a", urgency=Urgency.INTERACTIVE)
    assert popped(queue).index("mine") <= ahead + ahead // 9 + 1
