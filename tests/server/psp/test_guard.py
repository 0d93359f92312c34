"""The guard of calls to a PSP: concurrency, rate and breaker."""

from dataclasses import replace

import pytest
import trio
import trio.testing

from core.breaker import CALLS_MIN, Admission, BreakerState
from core.errors import PspBusy
from core.ids import PspAccountId
from server.db.psps.shared_state import reserve_slots
from server.psp.guard import Guard, Limits, Shared
from server.uuid7 import uuid7
from tests.support.florin import UNSHARED, Florin


def a_guard(limits: Limits, shared: Shared = UNSHARED) -> Guard:
    return Guard(limits, shared, admission_seconds_max=5.0)


async def test_no_more_calls_at_once_than_agreed_first_come_first_served(autojump_clock: trio.testing.MockClock) -> None:
    guard, most, order_of_turns = a_guard(Limits(concurrency=3)), 0, list[int]()

    async def call(number: int) -> None:
        nonlocal most
        admission = await guard.admit()
        order_of_turns.append(number)
        most = max(most, guard.in_flight)
        await trio.sleep(1)
        guard.leave(admission, failed=False)

    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(call, number)
            await trio.testing.wait_all_tasks_blocked()
    turns = [sorted(order_of_turns[start : start + 3]) for start in (0, 3, 6)]  # trio shuffles tasks that are woken together
    assert (most, guard.in_flight, turns) == (3, 0, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])


async def test_a_call_that_waits_too_long_has_sent_nothing(autojump_clock: trio.testing.MockClock) -> None:
    guard = a_guard(Limits(concurrency=1))
    admission = await guard.admit()
    with pytest.raises(PspBusy):
        await guard.admit()
    guard.leave(admission, failed=False)
    guard.leave(await guard.admit(), failed=False)
    assert guard.in_flight == 0


async def test_calls_are_spread_over_the_second(autojump_clock: trio.testing.MockClock) -> None:
    used_until = 0.0

    async def reserve(slots: int, interval_seconds: float) -> float:
        nonlocal used_until
        await trio.lowlevel.checkpoint()
        used_until = max(used_until, trio.current_time()) + slots * interval_seconds
        return used_until - slots * interval_seconds - trio.current_time()

    guard, times = a_guard(Limits(requests_per_second=10.0), replace(UNSHARED, reserve=reserve)), list[float]()

    async def call() -> None:
        admission = await guard.admit()
        times.append(trio.current_time())
        guard.leave(admission, failed=False)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(call)
    times.sort()
    assert all(sum(start <= at < start + 1 for at in times) <= 10 for start in times)
    assert times[-1] - times[0] < 40 / 9


@pytest.mark.parametrize("wakes_by", ["cancel", "leave"])
async def test_a_cancelled_call_gives_its_place_back(autojump_clock: trio.testing.MockClock, wakes_by: str) -> None:
    guard = a_guard(Limits(concurrency=1, requests_per_second=1.0))
    admission = await guard.admit()
    with trio.move_on_after(1):
        await guard.admit()
    guard.leave(admission, failed=None)
    with trio.move_on_after(0.1 if wakes_by == "cancel" else 10):
        guard.leave(await guard.admit(), failed=None)
    assert guard.in_flight == 0


async def test_a_breaker_that_was_open_lets_one_call_try(autojump_clock: trio.testing.MockClock) -> None:
    guard = a_guard(Limits())
    for _ in range(CALLS_MIN):
        guard.leave(await guard.admit(), failed=True)
    assert guard.news is BreakerState.OPEN
    with pytest.raises(PspBusy):
        await guard.admit()
    await trio.sleep(11)
    probe = await guard.admit()
    assert probe is Admission.PROBE
    with pytest.raises(PspBusy):
        await guard.admit()
    guard.leave(probe, failed=False)
    assert (guard.news, guard.state) == (BreakerState.CLOSED, BreakerState.CLOSED)


async def test_workers_take_turns_in_one_schedule(florin: Florin) -> None:
    """Ranges of two workers never overlap."""
    account = PspAccountId(uuid7())
    began = trio.current_time()
    ends = 0.0
    for _ in range(10):
        begins = trio.current_time() - began + await reserve_slots(florin.connection, account, slots=5, interval_seconds=0.1)
        assert begins >= ends - 0.02
        ends = begins + 0.5
    assert ends > 4.8
