"""The scenarios: the journey, defaults and targets of each.

A scenario is a journey (`bench.generator.journeys`), a schedule, and targets that hold on any machine: overload is refused
without loss, an outage leaves nothing open, memory does not grow. Its speed is a figure, not a target.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.generator.arrivals import Arrivals, Stage, spike
from bench.lab.load import Load
from bench.lab.results import Moment, Verdict

SPIKE_FACTOR = 10.0
GROWTH_MIB_PER_HOUR_MAX = 64.0
_MEBI = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The defaults of a scenario. Without `rate` it is a closed loop."""

    seconds: float = 20.0
    callers: int = 128
    rate: float | None = None
    count: int = 1_000_000
    merchants: int = 64
    psp_ms: int = 0
    sockets: int = 0
    items: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario. `pages`: it needs the sandbox PSP with its hosted pages and webhooks, not the stub. `is_timed`: it needs a
    schedule. `loses_webhooks`: those of the PSP are lost.
    """

    about: str
    journey: str
    defaults: Defaults = field(default_factory=Defaults)
    pages: bool = False
    is_timed: bool = False
    loses_webhooks: bool = False
    hears_webhooks: bool = False
    hears_stream: bool = False
    is_for_peers: bool = False
    takes_payments: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    stages: Callable[[float, float], list[Stage]] = lambda seconds, rate: [Stage(seconds, rate)]
    outage: Callable[[float], tuple[float, float]] | None = None
    verdicts: Callable[[Load, Sequence[Moment], float], list[Verdict]] = lambda _load, _series, _seconds: []


def _spike(seconds: float, rate: float) -> list[Stage]:
    """A third before, a third at ten times the rate, a third after."""
    third = seconds / 3
    return spike(rate, factor=SPIKE_FACTOR, before_seconds=third, seconds=third, after_seconds=third)


def _outage(seconds: float) -> tuple[float, float]:
    """The times at which the PSP goes and comes back: a sixth before, then down for half of the time."""
    return seconds / 6, seconds * 2 / 3


def _spike_verdicts(load: Load, series: Sequence[Moment], seconds: float) -> list[Verdict]:
    third = seconds / 3
    before, last = _within(series, 2, third), _within(series, seconds - third / 2, seconds)
    wrong = {how: count for how, count in load.ended.items() if how not in ("ok", "503")}
    if load.not_begun:
        wrong["not begun"] = load.not_begun
    failed, ok = sum(one.failed for one in last), sum(one.ok for one in last)
    return [
        Verdict(target="excess requests are refused with 503, and nothing else fails", found=counted(wrong), is_met=not wrong),
        Verdict(
            target="nothing is refused once the spike is over", found=f"{ok} ok, {failed} refused", is_met=ok > 0 and not failed
        ),
        Verdict(
            target="latency recovers: p99 at most twice as before, or 50 ms more",
            found=f"p99 {_p99(before):.0f} ms before, {_p99(last):.0f} ms after",
            is_met=ok > 0 and _p99(last) <= max(2 * _p99(before), _p99(before) + 50),
        ),
    ]


def _outage_verdicts(load: Load, series: Sequence[Moment], seconds: float) -> list[Verdict]:
    down, last = _within(series, seconds / 6 + 2, seconds * 2 / 3), _within(series, seconds * 5 / 6, seconds)
    failed, ok = sum(one.failed for one in last), sum(one.ok for one in last)
    wrong = {how: count for how, count in load.ended.items() if how not in ("ok", "502", "503", "504", "202")}
    refused = sum(one.failed for one in down)
    return [
        Verdict(
            target="during the outage callers get 502, 503 or 504",
            found=f"{refused} of those; otherwise: {counted(wrong)}",
            is_met=refused > 0 and not wrong,
        ),
        Verdict(
            target="payments go through again in the last sixth", found=f"{ok} ok, {failed} failed", is_met=ok > 0 and failed == 0
        ),
    ]


def _soak_verdicts(_load: Load, series: Sequence[Moment], seconds: float) -> list[Verdict]:
    """Of the second half only: what a program allocates after its start is not a leak."""
    half = _within(series, seconds / 2, seconds)
    resident = [one.resident_bytes["worker"] / _MEBI for one in half if one.resident_bytes.get("worker")]
    if len(resident) < 30:
        return [Verdict(target="memory does not grow", found="too short to tell: at least a minute is needed", is_met=False)]
    slope = statistics.linear_regression(range(len(resident)), resident).slope * 3_600
    before, after = _p99(_within(series, seconds / 4, seconds / 2)), _p99(_within(series, seconds * 3 / 4, seconds))
    return [
        Verdict(
            target=f"the worker grows by at most {GROWTH_MIB_PER_HOUR_MAX:.0f} MiB an hour",
            found=f"{slope:+.1f} MiB an hour, by the line through the second half",
            is_met=slope <= GROWTH_MIB_PER_HOUR_MAX,
        ),
        Verdict(
            target="p99 of the last quarter is at most 1.5 times that of the second",
            found=f"{before:.1f} and {after:.1f} ms",
            is_met=after <= max(1.5 * before, before + 20),
        ),
    ]


def _within(series: Sequence[Moment], begin: float, end: float) -> list[Moment]:
    """The seconds within a part of the schedule. Seconds of draining belong to no part."""
    return [one for one in series if begin < one.second <= end]


def _p99(series: Sequence[Moment]) -> float:
    """The median of the seconds' p99: one bad second of the machine is not a change of the server's."""
    known = [one.max_ms if one.p99_ms is None else one.p99_ms for one in series if one.ok]
    return statistics.median(known) if known else 0.0


def counted(wrong: dict[str, int]) -> str:
    """The numbers of journeys by result, as text."""
    return ", ".join(f"{count} x {how}" for how, count in sorted(wrong.items())) or "none"


SCENARIOS = {
    "hello": Scenario(
        about="GET /readyz: the HTTP server and the router",
        journey="hello",
        defaults=Defaults(callers=64),
        takes_payments=False,
    ),
    "sync": Scenario(about="a token is charged at POST", journey="sync", is_for_peers=True, hears_webhooks=True),
    "checkout": Scenario(
        about="create, hosted page, the PSP's webhook, the merchant's webhook and websocket",
        journey="checkout",
        defaults=Defaults(callers=64, merchants=16),
        pages=True,
        hears_webhooks=True,
        hears_stream=True,
    ),
    "verify": Scenario(
        about="paid on the page; the PSP's webhook is lost, and the merchant asks",
        journey="verify",
        defaults=Defaults(callers=64),
        pages=True,
        loses_webhooks=True,
    ),
    "mixed": Scenario(about="charges, and reads of payments and lists", journey="mixed"),
    "batch": Scenario(
        about="batches of charges at a PSP that takes two seconds",
        journey="batch",
        defaults=Defaults(callers=1, count=3, seconds=300.0, merchants=1, psp_ms=2_000, items=1_000),
    ),
    "stream": Scenario(
        about="events to many websockets; latency until the last one has it",
        journey="streamed",
        defaults=Defaults(rate=5.0, sockets=1_000, merchants=1),
        hears_stream=True,
    ),
    "spike": Scenario(
        is_timed=True,
        about="ten times the rate for a third of the time",
        journey="sync",
        defaults=Defaults(seconds=90.0, rate=150.0),
        environment={"FLORIN_REQUESTS_IN_FLIGHT_MAX": "256"},
        stages=_spike,
        verdicts=_spike_verdicts,
    ),
    "soak": Scenario(
        is_timed=True,
        about="memory and latency over an hour (--seconds 300 for the short form)",
        journey="mixed",
        defaults=Defaults(seconds=3_600.0, rate=200.0),
        verdicts=_soak_verdicts,
    ),
    "outage": Scenario(
        is_timed=True,
        about="the PSP does not answer for half of the time, then comes back",
        journey="sync",
        defaults=Defaults(seconds=120.0, rate=50.0),
        outage=_outage,
        verdicts=_outage_verdicts,
    ),
}


def describe(arrivals: Arrivals, *, rate: float | None, callers: int) -> str:
    """The load in words."""
    if rate is None:
        return f"closed loop, {callers} callers"
    return f"open loop, {rate:g}/s, {arrivals}"
