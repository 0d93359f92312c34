"""The guard of calls to a PSP: concurrency, rate and breaker."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import trio
import trio.testing

from core.breaker import CALLS_MIN, Admission, BreakerState
from core.errors import PspBusy
from core.fair_queue import Urgency
from core.ids import PspAccountId
from server.db.psps.shared_state import reserve_slots
from server.psp.guard import Guard, Limits
from server.psp.rate_schedule import Shared
from server.psp.turn import Turn
from server.uuid7 import uuid7
from tests.support.florin import UNSHARED, Florin


def a_guard(limits: Limits, shared: Shared = UNSHARED) -> Guard:
    return Guard(limits, shared, admission_seconds_max=5.0)


async def test_no_more_calls_at_once_than_agreed_first_come_first_served(autojump_clock: trio.testing.MockClock) -> None:
    guard, most, order_of_turns = a_guard(Limits(concurrency=3)), 0, list[int]()

    async def call(number: int) -> None:
        nonlocal most
        admission = await guard.admit(Turn())
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
    admission = await guard.admit(Turn())
    with pytest.raises(PspBusy):
        await guard.admit(Turn())
    guard.leave(admission, failed=False)
    guard.leave(await guard.admit(Turn()), failed=False)
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
        admission = await guard.admit(Turn())
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
    admission = await guard.admit(Turn())
    with trio.move_on_after(1):
        await guard.admit(Turn())
    guard.leave(admission, failed=None)
    with trio.move_on_after(0.1 if wakes_by == "cancel" else 10):
        guard.leave(await guard.admit(Turn()), failed=None)
    assert guard.in_flight == 0


async def test_a_breaker_that_was_open_lets_one_call_try(autojump_clock: trio.testing.MockClock) -> None:
    guard = a_guard(Limits())
    for _ in range(CALLS_MIN):
        guard.leave(await guard.admit(Turn()), failed=True)
    assert guard.news is BreakerState.OPEN
    with pytest.raises(PspBusy):
        await guard.admit(Turn())
    await trio.sleep(11)
    probe = await guard.admit(Turn())
    assert probe is Admission.PROBE
    with pytest.raises(PspBusy):
        await guard.admit(Turn())
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


async def test_a_call_that_could_not_be_served_in_time_is_refused_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """With an honest time: whoever comes back then is served."""
    guard, refused = a_guard(Limits(requests_per_second=5.0), replace(UNSHARED, reserve=_one_schedule())), list[float]()

    async def call() -> None:
        try:
            guard.leave(await guard.admit(Turn()))
        except PspBusy as error:
            refused.append(error.retry_after_seconds)

    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(call)
    assert 30 < len(refused) < 45
    assert trio.current_time() < 6
    assert min(refused) > 4


def _one_schedule() -> Callable[[int, float], Awaitable[float]]:
    used_until = 0.0

    async def reserve(slots: int, interval_seconds: float) -> float:
        nonlocal used_until
        await trio.lowlevel.checkpoint()
        used_until = max(used_until, trio.current_time()) + slots * interval_seconds
        return used_until - slots * interval_seconds - trio.current_time()

    return reserve


async def test_one_merchants_flood_does_not_starve_another(autojump_clock: trio.testing.MockClock) -> None:
    guard, served = a_guard(Limits(requests_per_second=10.0), replace(UNSHARED, reserve=_one_schedule())), list[str]()

    async def call(merchant: str) -> None:
        guard.leave(await guard.admit(Turn(merchant, Urgency.INTERACTIVE)))
        served.append(merchant)

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(call, "flood")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            nursery.start_soon(call, "small")
    assert served.index("small") < 3
    assert [number for number, one in enumerate(served) if one == "small"][-1] < 13


async def test_calls_reserved_for_different_times_do_not_go_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """As when the commits between a reservation and its call were held up together."""
    guard, times = a_guard(Limits(requests_per_second=10.0), replace(UNSHARED, reserve=_one_schedule())), list[float]()
    turns = [Turn() for _ in range(10)]
    for turn in turns:
        await guard.reserve(turn)

    async def call(turn: Turn) -> None:
        admission = await guard.admit(turn)
        times.append(trio.current_time())
        guard.leave(admission)

    async with trio.open_nursery() as nursery:
        for turn in turns:
            nursery.start_soon(call, turn)
    assert all(later - earlier >= 0.099 for earlier, later in pairwise(sorted(times)))


async def test_a_place_that_is_not_used_is_given_back() -> None:
    guard = a_guard(Limits(concurrency=1))
    await trio.lowlevel.checkpoint()
    with Turn() as turn:
        assert guard.try_reserve(turn)
        assert not guard.try_reserve(Turn())
        assert guard.in_flight == 1
    assert guard.in_flight == 0
