"""A cached value is loaded once, however many callers ask."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from server.concurrency.single_flight_cache import KEPT_SECONDS, SingleFlightCache, Validity

SECONDS = 2.0


class Source:
    """Counts loads, and answers on request."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = trio.Event()
        self.failure: Exception | None = None

    async def find(self, key: str) -> str:
        """Load one value."""
        self.asked += 1
        number = self.asked
        await self.may_answer.wait()
        if self.failure is not None:
            raise self.failure
        return f"{key} {number}"


async def test_callers_that_come_meanwhile_wait_for_the_same_load(autojump_clock: MockClock) -> None:
    source, found = Source(), list[str]()
    remembered = SingleFlightCache(source.find, seconds=SECONDS, most=10)

    async def ask() -> None:
        found.append(await remembered.look_up("a"))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        source.may_answer.set()
    assert (source.asked, set(found)) == (1, {"a 1"})
    assert remembered.get("a", now=trio.current_time()) == "a 1"
    await trio.sleep(SECONDS)
    assert remembered.get("a", now=trio.current_time()) is None
    assert remembered.last("a") == "a 1"
    remembered.forget("a")
    assert remembered.last("a") is None


async def test_a_failed_load_fails_for_all_and_is_not_kept() -> None:
    source = Source()
    source.failure = ValueError("gone")
    remembered = SingleFlightCache(source.find, seconds=SECONDS, most=10)
    failures = 0

    async def ask() -> None:
        nonlocal failures
        with pytest.raises(ValueError, match="gone"):
            await remembered.look_up("a")
        failures += 1

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        source.may_answer.set()
    assert (source.asked, failures) == (1, 10)
    source.failure = None
    assert await remembered.look_up("a") == "a 2"


async def test_a_cancelled_caller_does_not_cancel_the_others() -> None:
    source, found = Source(), list[str]()
    remembered = SingleFlightCache(source.find, seconds=SECONDS, most=10)

    async def ask() -> None:
        found.append(await remembered.look_up("a"))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def leave() -> None:
                await wait_all_tasks_blocked()
                scope.cancel()

            nursery.start_soon(leave)
            nursery.start_soon(ask)
            await remembered.look_up("a")
        await wait_all_tasks_blocked()
        source.may_answer.set()
    assert found in (["a 1"], ["a 2"])  # whichever of the two was first


async def test_a_value_that_is_not_kept_is_loaded_by_each(autojump_clock: MockClock) -> None:
    source, found = Source(), list[str]()
    remembered = SingleFlightCache(source.find, seconds=SECONDS, most=10, keeps=lambda value: value.endswith("3"))

    async def ask() -> None:
        found.append(await remembered.look_up("a"))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        source.may_answer.set()
    assert sorted(found) == ["a 1", "a 2", "a 3", "a 3", "a 3"]
    assert remembered.last("a") == "a 3"


async def test_a_value_is_as_old_as_the_start_of_its_load(autojump_clock: MockClock) -> None:
    async def slowly(key: str) -> str:
        await trio.sleep(SECONDS - 0.5)
        return key

    remembered = SingleFlightCache(slowly, seconds=SECONDS, most=10)
    await remembered.look_up("a")
    await trio.sleep(0.6)
    assert remembered.get("a", now=trio.current_time()) is None


async def test_no_more_is_remembered_than_was_agreed() -> None:
    source = Source()
    source.may_answer.set()
    remembered = SingleFlightCache(source.find, seconds=SECONDS, most=3)
    for key in "abcdefg":
        await remembered.look_up(key)
        assert sum(remembered.last(one) is not None for one in "abcdefg") <= 3


async def test_values_are_kept_while_nothing_has_changed(autojump_clock: MockClock) -> None:
    source, validity = Source(), Validity()
    source.may_answer.set()
    kept = SingleFlightCache(
        source.find, seconds=SECONDS, most=10, validity=validity, lasts=lambda value: not value.startswith("b")
    )
    began = trio.current_time()
    assert await kept.look_up("a") == "a 1"
    assert await kept.look_up("b") == "b 2"
    validity.extend(until=began + 10)
    await trio.sleep(9)
    assert kept.get("a", now=trio.current_time()) == "a 1"
    assert kept.get("b", now=trio.current_time()) is None, "a value that does not last has its own time only"
    await trio.sleep(1)
    assert kept.get("a", now=trio.current_time()) is None, "it is not known whether something has changed"
    validity.extend(until=began + 1_000)
    assert kept.get("a", now=trio.current_time()) == "a 1"
    validity.end()
    assert kept.get("a", now=trio.current_time()) is None
    assert await kept.look_up("a") == "a 3"
    await trio.sleep(KEPT_SECONDS)
    assert kept.get("a", now=trio.current_time()) is None, "nothing is kept for ever"


async def test_a_value_that_was_being_loaded_when_something_changed_is_not_kept(autojump_clock: MockClock) -> None:
    source, validity = Source(), Validity()
    kept = SingleFlightCache(source.find, seconds=SECONDS, most=10, validity=validity)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.look_up, "a")
        await wait_all_tasks_blocked()
        validity.end()
        source.may_answer.set()
    validity.extend(until=trio.current_time() + 10)
    assert kept.get("a", now=trio.current_time()) == "a 1"
    await trio.sleep(SECONDS)
    assert kept.get("a", now=trio.current_time()) is None
