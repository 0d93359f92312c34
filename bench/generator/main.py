"""`python -m bench.generator.main [WEBHOOKS_DESCRIPTOR]`: one process that offers load: one plan per line of its input, its
reports on its output.

In an open loop latency counts from the intended start, whether the generator or the server was late; in a closed loop from the
actual one. Invariants: it ends within the plan's time and its timeout; a journey ends once.
"""

import gc
import math
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from hdrh.histogram import HdrHistogram

from bench.generator.arrivals import Arrivals, intended_starts
from bench.generator.http import Pool
from bench.generator.journeys import JOURNEYS, OK, Answer, Ask, AwaitNotification, Journey, Mark, Wanted, World
from bench.generator.loop import Loop
from bench.generator.notifications import Notifications
from bench.generator.plan import Plan, Report, Second, Tally
from server.child_process import allow_many_files

SAMPLES_MAX = 500
_HIGHEST_US, _DIGITS = 3_600_000_000, 3


class RunningJourney:
    """A journey under way."""

    __slots__ = ("_driver", "_journey", "began", "is_over", "number")

    def __init__(self, driver: "Driver", journey: Journey, number: int, began: float) -> None:
        self._driver = driver
        self._journey = journey
        self.number = number
        self.began = began
        self.is_over = False

    def begin(self) -> None:
        """Take the first step."""
        self._go(lambda: next(self._journey))

    def answered(self, status: int, body: bytes) -> None:
        """Continue with an answer. Does nothing if the journey was given up."""
        if not self.is_over:
            self._go(lambda: self._journey.send(Answer(status, body)))

    def _go(self, step: Callable[[], Wanted]) -> None:
        driver = self._driver
        try:
            wanted = step()
            while isinstance(wanted, Mark):
                driver.record(wanted.name, self.began)
                wanted = next(self._journey)
        except StopIteration as end:
            self.is_over = True
            driver.ended(self, end.value)
            return
        match wanted:
            case Ask(data, False):
                driver.api.ask(data, self.answered)
            case Ask(data, True):
                assert driver.psp is not None, "this scenario needs the PSP's address"
                driver.psp.ask(data, self.answered)
            case AwaitNotification(payment_id):
                driver.notifications.wait(payment_id, partial(self.answered, 200, b""))


class Driver:
    """Carries out one plan."""

    def __init__(self, loop: Loop, notifications: Notifications, plan: Plan, pools: dict[str, Pool], *, told_before: int) -> None:
        self._loop, self.notifications, self._plan = loop, notifications, plan
        self.api = self._pool(pools, plan.url)
        self.psp = self._pool(pools, plan.psp_url) if plan.psp_url else None
        rng = random.Random(f"{plan.seed} {plan.part}")
        self._world = World(plan.url, plan.keys, rng, items=plan.items)
        self._journey = JOURNEYS[plan.scenario]
        self._starts = self._schedule(rng)
        self._next_start: float | None = None
        self._running: dict[int, RunningJourney] = {}
        self._begun = self._not_begun = self._told_before = 0
        self._ended: dict[str, int] = {}
        self._histograms: dict[str, HdrHistogram] = {}
        self._told_at_first = told_before
        self._offers = True
        self._is_over = False
        self._last_ok_at = self._closed_at = plan.begin_at
        self._new_second()

    def _pool(self, pools: dict[str, Pool], url: str) -> Pool:
        if url not in pools:
            pools[url] = Pool(self._loop, url, connections_max=self._plan.connections_max)
        return pools[url]

    def run(self) -> Tally:
        """Run the plan to its end."""
        plan, loop = self._plan, self._loop
        if plan.hears_stream:
            self.notifications.open_streams(plan.url, plan.keys, sockets=plan.sockets)
        self.notifications.channels = plan.hears_webhooks + (self.notifications.sockets_per_key if plan.hears_stream else 0)
        loop.call_at(plan.begin_at, self._open)
        loop.call_at(plan.begin_at + plan.seconds, self._close)
        loop.call_at(plan.begin_at + 1, partial(self._tick, 1))
        loop.run()
        self._is_over = True
        self._tell(math.ceil(loop.now - plan.begin_at))
        self.notifications.forget()
        for pool in filter(None, (self.api, self.psp)):
            pool.forget_all()
        return Tally(
            ended=self._ended,
            begun=self._begun,
            not_begun=self._not_begun,
            seconds=max(self._last_ok_at, min(self._closed_at, plan.begin_at + plan.seconds)) - plan.begin_at,
            histograms={name: one.encode().decode() for name, one in self._histograms.items()},
            told=self.notifications.told - self._told_at_first,
        )

    def _schedule(self, rng: random.Random) -> Iterator[float]:
        plan = self._plan
        if plan.arrivals is Arrivals.CLOSED:
            return iter(())
        return intended_starts(plan.stages, kind=plan.arrivals, rng=rng, part=plan.part, parts=plan.parts)

    def _open(self) -> None:
        if self._plan.arrivals is Arrivals.CLOSED:
            for _ in range(self._plan.callers):
                self._begin(self._loop.now)
            if not self._plan.callers:
                self._close()
        else:
            self._begin_due()

    def _begin_due(self) -> None:
        """Begin what is due by the schedule, and set a timer for the next."""
        began_at = self._plan.begin_at
        while self._offers:
            if self._next_start is None:
                offset = next(self._starts, None)
                if offset is None:
                    return
                self._next_start = began_at + offset
            if self._next_start > self._loop.now:
                self._loop.call_at(self._next_start, self._begin_due)
                return
            self._begin(self._next_start)
            self._next_start = None

    def _begin(self, intended: float) -> None:
        if self._begun >= self._plan.count_max:
            self._close()
            return
        if len(self._running) >= self._plan.in_flight_max:
            self._not_begun += 1
            return
        self._begun += 1
        self._second_begun += 1
        now = time.monotonic()
        self._record("lag", int((now - intended) * 1e6))
        began = now if self._plan.arrivals is Arrivals.CLOSED else intended
        journey_run = self._running[self._begun] = RunningJourney(self, self._journey(self._world), self._begun, began)
        journey_run.begin()

    def record(self, name: str, since: float) -> None:
        """Record the time since then."""
        self._record(name, int((self._loop.now - since) * 1e6))

    def _record(self, name: str, microseconds: int) -> None:
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        histogram.record_value(min(max(microseconds, 1), _HIGHEST_US))

    def ended(self, journey_run: RunningJourney, ending: str) -> None:
        """End a journey that is over or was given up."""
        del self._running[journey_run.number]
        self._ended[ending] = self._ended.get(ending, 0) + 1
        self._second_ended[ending] = self._second_ended.get(ending, 0) + 1
        took_us = int((self._loop.now - journey_run.began) * 1e6)
        self._record(ending, took_us)
        if ending == OK:
            self._last_ok_at = self._loop.now
            self._second_latencies.append(took_us)
        if self._offers and self._plan.arrivals is Arrivals.CLOSED:
            # not from here: a server that refuses at once would cause ever deeper recursion
            at = self._loop.now
            self._loop.call_at(at, lambda: self._begin(at) if self._offers else None)
        elif not self._offers and not self._running:
            self._loop.stop()

    def _close(self) -> None:
        """Start no more journeys."""
        if not self._offers or self._is_over:
            return
        self._offers = False
        self._closed_at = self._loop.now
        if not self._running:
            self._loop.stop()

    def _tick(self, number: int) -> None:
        if self._is_over:
            return  # a timer from before the end; the next plan has its own
        for journey_run in list(self._running.values()):
            if self._loop.now - journey_run.began < self._plan.timeout_seconds:
                break  # later ones began later
            journey_run.is_over = True
            for pool in filter(None, (self.api, self.psp)):
                pool.forget(journey_run.answered)
            self.ended(journey_run, "timeout")
        self._tell(number)
        if self._offers or self._running:
            self._loop.call_at(self._plan.begin_at + number + 1, partial(self._tick, number + 1))

    def _new_second(self) -> None:
        self._second_begun = 0
        self._second_ended: dict[str, int] = {}
        self._second_latencies: list[int] = []
        self._told_before = self.notifications.told

    def _tell(self, number: int) -> None:
        latencies = sorted(self._second_latencies)
        step = max(len(latencies) / SAMPLES_MAX, 1)
        say(
            Report(
                second=Second(
                    number=number,
                    begun=self._second_begun,
                    ended=self._second_ended,
                    in_flight=len(self._running),
                    latencies_us=[latencies[int(at * step)] for at in range(int(len(latencies) / step))],
                    max_us=latencies[-1] if latencies else 0,
                    told=self.notifications.told - self._told_before,
                )
            )
        )
        self._new_second()


def say(report: Report) -> None:
    """Write one line to the parent."""
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Carry out plans until the input ends."""
    allow_many_files()
    loop = Loop()
    notifications = Notifications(loop, socket.socket(fileno=int(sys.argv[1])) if len(sys.argv) > 1 else None)
    pools: dict[str, Pool] = {}
    told_before = 0
    gc.freeze()

    def read(_: int) -> None:
        loop.stop()

    # Notifications of the previous plan may still arrive between plans.
    loop.watch(0, read)
    say(Report())
    while True:
        loop.run()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        loop.forget(0)
        plan = msgspec.json.decode(line, type=Plan)
        say(Report(tally=Driver(loop, notifications, plan, pools, told_before=told_before).run()))
        told_before = notifications.told
        loop.watch(0, read)


if __name__ == "__main__":
    main()
