"""The parent's side of the load: several generator processes that share a plan, and their combined results.

One generator can be the bottleneck; two on two cores are still part of the machine they measure. `lag` shows how late they were,
so that a reader can tell the server's latency from the generator's.
"""

import math
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import trio

from bench.generator.journeys import OK
from bench.generator.plan import Plan, Report, Second, Tally
from core.errors import FlorinError
from server.db.connection import Connection, open_session
from server.http.server.listener import bind

START_SECONDS = 0.3
"""A plan is handed out this long before it begins, so that all generators have read it by then."""
GRACE_SECONDS = 20.0
READY_SECONDS = 30.0
SETTLE_SECONDS = 150.0
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram


class LoadError(FlorinError):
    """The load could not be offered."""


@dataclass(slots=True)
class Load:
    """The combined results of the generators. `ended` counts by result; seconds are those of the slowest."""

    ended: dict[str, int] = field(default_factory=dict)
    begun: int = 0
    not_begun: int = 0
    seconds: float = 0.0
    told: int = 0
    histograms: "dict[str, HdrHistogram]" = field(default_factory=dict)
    series: list[Second] = field(default_factory=list)

    @property
    def succeeded(self) -> int:
        """The number of successful journeys."""
        return self.ended.get(OK, 0)

    def latency_ms(self, percentile: float, mark: str = OK) -> float:
        """A percentile of successful journeys in milliseconds; NaN if there are none."""
        histogram = self.histograms.get(mark)
        return histogram.get_value_at_percentile(percentile) / 1_000 if histogram else math.nan

    def add(self, tally: Tally) -> None:
        """Add one generator's results."""
        from hdrh.histogram import HdrHistogram  # which `florin bench --help` does not need

        for ending, number in tally.ended.items():
            self.ended[ending] = self.ended.get(ending, 0) + number
        self.begun += tally.begun
        self.not_begun += tally.not_begun
        self.told += tally.told
        self.seconds = max(self.seconds, tally.seconds)
        for name, encoded in tally.histograms.items():
            if name not in self.histograms:
                self.histograms[name] = HdrHistogram(1, 3_600_000_000, 3)
            self.histograms[name].decode_and_add(encoded)


class Generator:
    """One process, and the socket on which webhooks reach it."""

    def __init__(self, process: "subprocess.Popen[bytes]", ears_url: str) -> None:
        self.process = process
        self.ears_url = ears_url
        assert process.stdout is not None
        self._lines = process.stdout

    async def until_ready(self) -> None:
        """Wait for its first line."""
        await self._read()

    async def _read(self) -> Report:
        line = await trio.to_thread.run_sync(self._lines.readline, abandon_on_cancel=True)
        if not line:
            raise LoadError("a load generator has ended; the reason is above")
        return msgspec.json.decode(line, type=Report)

    async def carry_out(self, plan: Plan, on_second: Callable[[Second], None]) -> Tally:
        """Carry out a plan to its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(plan) + b"\n")
        self.process.stdin.flush()
        while True:
            report = await self._read()
            if report.second is not None:
                on_second(report.second)
            if report.tally is not None:
                return report.tally


@asynccontextmanager
async def open_generators(count: int) -> AsyncIterator[list[Generator]]:
    """That many generators for the block, killed at its end."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            notifications = stack.enter_context(bind("127.0.0.1", 0))
            command = [sys.executable, "-m", "bench.generator.main", str(notifications.fileno())]
            process = stack.enter_context(
                subprocess.Popen(  # noqa: ASYNC220 - it only forks
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[notifications.fileno()],
                    start_new_session=True,
                )
            )
            stack.callback(process.kill)
            found.append(Generator(process, f"http://127.0.0.1:{notifications.getsockname()[1]}/"))
        with trio.fail_after(READY_SECONDS):
            for one in found:
                await one.until_ready()
        yield found


async def offer(
    generators: Sequence[Generator], plan: Plan, keys: Sequence[Sequence[str]], on_second: Callable[[Load], None] | None = None
) -> Load:
    """Let the generators carry out the plan together, each with its own merchants' keys.

    Callers, connections and the count are divided; `on_second` is called when all have reported a second.
    """
    load = Load()
    begin_at = time.monotonic() + START_SECONDS
    parts = len(generators)
    pending: dict[int, list[Second]] = {}

    def collect(second: Second) -> None:
        together = pending.setdefault(second.number, [])
        together.append(second)
        if len(together) == parts or second.number > plan.seconds + 1:
            load.series = [one for one in load.series if one.number != second.number] + [_together(together)]
            if on_second is not None:
                on_second(load)

    async def one(number: int) -> None:
        mine = msgspec.structs.replace(
            plan,
            keys=list(keys[number]),
            callers=_share(plan.callers, number, parts),
            count_max=_share(plan.count_max, number, parts),
            connections_max=max(_share(plan.connections_max, number, parts), 1),
            in_flight_max=max(_share(plan.in_flight_max, number, parts), 1),
            begin_at=begin_at,
            seed=random.Random(f"{plan.seed}/{number}").getrandbits(32),
            part=number,
            parts=parts,
        )
        load.add(await generators[number].carry_out(mine, collect))

    try:
        with trio.fail_after(plan.seconds + plan.timeout_seconds + GRACE_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(parts):
                    nursery.start_soon(one, number)
    except trio.TooSlowError as error:
        raise LoadError("a load generator did not end in time") from error
    load.series = [_together(pending[number]) for number in sorted(pending)]
    return load


async def settle(database_url: str | None) -> bool:
    """Wait until all work has ended. Returns whether that was in time."""
    if database_url is None:
        await trio.sleep(1.0)
        return True
    async with open_session(database_url) as connection:
        with trio.move_on_after(SETTLE_SECONDS):
            while not await _is_settled(connection):  # noqa: ASYNC110 - a database sends no event when its work has ended
                await trio.sleep(0.1)
            return True
    return False


async def _is_settled(connection: Connection) -> bool:
    rows = await connection.query(
        """
        SELECT NOT EXISTS (SELECT FROM payment_requests WHERE due_at IS NOT NULL AND status IN ('PENDING', 'UNKNOWN'))
           AND NOT EXISTS (SELECT FROM deliveries WHERE due_at IS NOT NULL)
        """
    )
    return bool(rows[0][0])


def _share(whole: int, number: int, parts: int) -> int:
    return whole // parts + (number < whole % parts)


def _together(seconds: Sequence[Second]) -> Second:
    ended: dict[str, int] = {}
    for second in seconds:
        for ending, count in second.ended.items():
            ended[ending] = ended.get(ending, 0) + count
    return Second(
        number=seconds[0].number,
        begun=sum(second.begun for second in seconds),
        ended=ended,
        in_flight=sum(second.in_flight for second in seconds),
        latencies_us=sorted(value for second in seconds for value in second.latencies_us),
        max_us=max(second.max_us for second in seconds),
        told=sum(second.told for second in seconds),
    )


def free_socket() -> socket.socket:
    """A listening socket on any free port of loopback."""
    return bind("127.0.0.1", 0)
