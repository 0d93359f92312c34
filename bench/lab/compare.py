"""Ratios with confidence intervals, from interleaved rounds.

Each round gives one ratio, because within a round the machine was nearly the same. The result is the mean of their logarithms
with its 95 % interval by Student's t. An interval that contains 1 means that the noise is larger than the difference.
"""

import math
import statistics
from collections.abc import Callable, Sequence

from rich.table import Table

from bench.lab.results import Comparison, Measurement, Ratio, Report, ReportError

ROUNDS_MIN = 3
_T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)
"""Student's t at 97.5 %, from 1 degree of freedom on; beyond that 1.96 + 2.5 / freedom is close enough."""


def ratio(what: str, a: Sequence[float], b: Sequence[float]) -> Ratio:
    """The ratio of values of the same rounds: at least `ROUNDS_MIN`, all above 0."""
    logs = [math.log(one / other) for one, other in zip(b, a, strict=True)]
    middle = statistics.fmean(logs)
    freedom = len(logs) - 1
    quantile = _T_975[freedom - 1] if freedom <= len(_T_975) else 1.96 + 2.5 / freedom
    spread = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    ends = (middle, middle - spread, middle + spread)
    return Ratio(what, statistics.median(a), statistics.median(b), *map(math.exp, ends))


def compare(a: Sequence[Measurement], b: Sequence[Measurement]) -> list[Ratio]:
    """Compare the rounds of one subject with those of another. Raises `ReportError` if there are too few."""
    pairs_of = [(one, other) for one, other in zip(a, b, strict=False) if "ok" in one.latencies and "ok" in other.latencies]
    a, b = [one for one, _ in pairs_of], [other for _, other in pairs_of]
    count = len(pairs_of)
    if count < ROUNDS_MIN:
        raise ReportError(f"{count} rounds are too few to estimate the noise: measure with --rounds {ROUNDS_MIN} or more")
    figures: dict[str, Callable[[Measurement], float]] = {
        "payments/s": lambda one: one.rate,
        "p50 ms": lambda one: one.latencies["ok"].at("p50") or 0.0,
        "p99 ms": lambda one: one.latencies["ok"].at("p99") or 0.0,
    }
    shared = [name for name in a[0].cpu_us if all(name in one.cpu_us for one in (*a, *b))]
    for name in shared:
        figures[f"{name} µs"] = lambda one, name=name: one.cpu_us[name]  # type: ignore[misc]  # the default binds the name
    found = []
    for what, figure in figures.items():
        pairs = [(figure(one), figure(other)) for one, other in zip(a[:count], b[:count], strict=True)]
        if all(one > 0 and other > 0 for one, other in pairs):
            found.append(ratio(what, [one for one, _ in pairs], [other for _, other in pairs]))
    return found


def compared(report: Report) -> list[Comparison]:
    """Every other subject of a run beside the first, if there are rounds enough."""
    found: list[Comparison] = []
    for scenario in dict.fromkeys(one.scenario for one in report.measurements):
        rounds: dict[str, list[Measurement]] = {}
        for one in report.measurements:
            if one.scenario == scenario:
                rounds.setdefault(one.subject, []).append(one)
        first, *others = rounds
        for other in others:
            try:
                ratios = compare(rounds[first], rounds[other])
            except ReportError:
                continue
            found.append(Comparison(scenario, first, other, ratios))
    return found


def rounds_of(report: Report, subject: str | None, scenario: str | None) -> list[Measurement]:
    """One subject's rounds. Raises `ReportError` if it is unclear which ones are meant."""
    found = [one for one in report.measurements if subject in (None, one.subject) and scenario in (None, one.scenario)]
    kinds = {(one.scenario, one.subject) for one in found}
    if len(kinds) != 1:
        known = ", ".join(sorted({one.subject for one in report.measurements})) or "nothing"
        raise ReportError(f"name a subject of the report as FILE:SUBJECT: it has {known}")
    return found


def table(ratios: Sequence[Ratio], *, a: str, b: str) -> Table:
    """The table of ratios."""
    shown = Table("", a, b, f"{b} / {a}", "95 %", "", box=None)
    for one in ratios:
        said = "" if one.is_certain else "no difference beyond the noise"
        values = (f"{one.a:,.1f}", f"{one.b:,.1f}", f"{one.middle:.3f}", f"{one.low:.3f} to {one.high:.3f}")
        shown.add_row(one.what, *values, said)
    return shown


def warnings(a: Report, b: Report) -> list[str]:
    """Reasons why two reports are hard to compare."""
    found = []
    if a != b:
        found.append("these are two runs: their rounds were not interleaved, so the ratio includes the machine's drift")
    if {one.scenario for one in a.measurements} != {one.scenario for one in b.measurements}:
        found.append("they are of different scenarios")
    if a.measurements and b.measurements and _load(a.measurements[0]) != _load(b.measurements[0]):
        found.append("their load or settings were different")
    if a.machine != b.machine:
        found.append("they were measured on different machines or versions")
    return found


def _load(one: Measurement) -> dict[str, object]:
    return {name: value for name, value in one.settings.items() if name not in ("commit", "count_max")}
