"""The largest sustainable rate: the highest open-loop rate at which the latency stays within an objective, by bisection.

A closed loop shows what a saturated server does; a shop asks how much it can offer before its customers wait. A rate is sustained
if every journey succeeds, none is left out, and p99 from the intended start is within the objective.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

from rich.table import Table

from bench.lab.load import open_generators
from bench.lab.options import RunOptions
from bench.lab.results import Measurement
from bench.lab.run import Told, checked, measure, open_subjects, prepare, rest, warm_up
from bench.lab.scenarios import Scenario
from bench.lab.subjects import Subject

RATE_FIRST = 200.0
RATE_MAX = 20_000.0
PRECISION = 0.05
"""The search ends when the rate is known to this part of it."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest rate that a subject sustains, 0 if none, with the measurement at that rate and at the lowest it did not."""

    subject: str
    rate: float
    sustained: Measurement | None
    exceeded: Measurement | None


async def find_capacity(
    options: RunOptions, scenario: Scenario, p99_ms: float, told: Told
) -> tuple[list[Capacity], dict[str, str], list[str]]:
    """Find the capacity of each subject. Returns those that were left out, and what the doctor found, as well."""
    found: list[Capacity] = []
    left_out: dict[str, str] = {}
    async with open_generators(options.generators) as generators, AsyncExitStack() as stack:
        told("starting", None)
        subjects = await open_subjects(options, scenario, generators, stack, left_out)
        for subject in subjects:
            told(f"{subject.name}: warming up", None)
            await prepare(options, scenario, subject)
            await warm_up(replace(options, rate=RATE_FIRST), scenario, subject, generators)

            async def try_rate(rate: float, subject: Subject = subject) -> Measurement:
                await rest(subject)
                offered = replace(options, rate=rate)
                title = f"{subject.name}: {rate:,.0f}/s"
                return await measure(offered, scenario, subject, generators, partial(told, title), number=1)

            found.append(await _search(subject.name, try_rate, p99_ms))
        told("checking every promise", None)
        broken = [text for _, found_broken in (await checked(subjects)).values() for text in found_broken]
    return found, left_out, broken


async def _search(name: str, try_rate: Callable[[float], Awaitable[Measurement]], p99_ms: float) -> Capacity:
    low, high, rate = 0.0, RATE_MAX, RATE_FIRST
    sustained: Measurement | None = None
    exceeded: Measurement | None = None
    while high - low > PRECISION * max(low, 1.0) and rate >= 1.0:
        measured = await try_rate(rate)
        if is_sustained(measured, p99_ms):
            low, sustained = rate, measured
        else:
            high, exceeded = rate, measured
        rate = min(2 * rate, RATE_MAX) if high == RATE_MAX and exceeded is None else (low + high) / 2
    return Capacity(name, low, sustained, exceeded)


def is_sustained(measured: Measurement, p99_ms: float) -> bool:
    """Return whether every journey succeeded, and in time."""
    all_ok = set(measured.ended) == {"ok"} and not measured.not_begun
    return all_ok and _p99(measured) <= p99_ms


def _p99(measured: Measurement) -> float:
    """The p99, or the maximum if there were too few journeys to tell it."""
    latency = measured.latencies["ok"]
    found = latency.at("p99")
    return latency.milliseconds["max"] if found is None else found


def capacities(found: Sequence[Capacity], p99_ms: float) -> Table:
    """The results, for the terminal."""
    shown = Table("subject", f"sustained/s (p99 <= {p99_ms:g} ms)", "p50 ms", "p99 ms", "at the next rate", box=None)
    for one in found:
        latency = one.sustained.latencies["ok"].milliseconds if one.sustained else {}
        times = [f"{latency[label]:,.1f}" if label in latency else "–" for label in ("p50", "p99")]
        shown.add_row(one.subject, f"{one.rate:,.0f}", *times, _exceeded(one.exceeded))
    return shown


def _exceeded(measured: Measurement | None) -> str:
    """The reason why a rate was too high."""
    if measured is None:
        return "not reached"
    rate = measured.settings["stages"][0][1]
    p99 = f"p99 {_p99(measured):,.0f} ms" if "ok" in measured.latencies else "none succeeded"
    failed = ", ".join(f"{count} {how}" for how, count in measured.ended.items() if how != "ok")
    return f"{rate:,.0f}/s: {p99}{', ' + failed if failed else ''}"
