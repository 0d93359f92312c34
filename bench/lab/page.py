"""A report as one HTML page, readable for people who were not there."""

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.lab.charts import bars, lines
from bench.lab.results import Measurement, Report, Verdict, bears

CAVEATS = (
    (
        "Load, PSP, PostgreSQL and what is measured share the cores of one machine: payments per second would be more if they "
        "did not, by a different factor for each subject. CPU µs show what a payment costs, whatever else runs."
    ),
    "On a shared host the same code differs by 10 to 20 % from hour to hour: compare interleaved rounds of one run.",
    "Loopback has no network latency: add your round trips to each latency.",
    "The stub PSP answers at once, or after a fixed time; real ones vary.",
    "A process's CPU time is counted in ticks of 10 ms: only rounds of a second or more are meaningful.",
    "An fsync costs what this machine's disk takes for it, which may be little on a virtual machine.",
)
_PERCENTILES = (0.0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)


def render(report: Report) -> str:
    """The page."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    found = report.measurements
    broken = next((one.broken_promises for one in found if one.broken_promises is not None), None)
    return environment.get_template("report.html").render(
        title=", ".join(dict.fromkeys(f"{one.scenario}" for one in found)),
        report=report,
        components=list(dict.fromkeys(name for one in found for name in one.cpu_us)),
        rows=[_row(group) for group in by_subject(found)],
        comparisons=report.comparisons,
        verdicts=_verdicts(found),
        broken=broken,
        plots=[*_plots(found)],
        notes=list(dict.fromkeys(f"{one.subject}: {note}" for one in found for note in one.notes)),
        facts=_facts(report),
        caveats=CAVEATS,
    )


def by_subject(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """The rounds of each scenario and subject."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.scenario, one.subject), []).append(one)
    return list(groups.values())


def _row(rounds: Sequence[Measurement]) -> dict[str, Any]:
    def middle(values: Iterable[float]) -> float:
        known = list(values)
        return statistics.median(known) if known else 0.0

    def latency(label: str) -> str:
        known = [at for one in rounds if "ok" in one.latencies and (at := one.latencies["ok"].at(label)) is not None]
        return f"{middle(known):,.1f}" if known else "–"

    offered = [one.offered for one in rounds if one.offered is not None]

    names = dict.fromkeys(name for one in rounds for name in one.cpu_us)
    return {
        "scenario": rounds[0].scenario,
        "subject": rounds[0].subject,
        "rounds": len(rounds),
        "offered": f"{middle(offered):,.0f}" if offered else "–",
        "rate": f"{middle(one.rate for one in rounds):,.0f}",
        "p50": latency("p50"),
        "p99": latency("p99"),
        "max": f"{max((one.latencies['ok'].milliseconds['max'] for one in rounds if 'ok' in one.latencies), default=0.0):,.1f}",
        "failed": sum(sum(one.ended.values()) - one.ended.get("ok", 0) for one in rounds),
        "cpu": {name: f"{middle(one.cpu_us[name] for one in rounds if name in one.cpu_us):,.0f}" for name in names},
    }


def _verdicts(found: Sequence[Measurement]) -> list[Verdict]:
    return [verdict for one in found for verdict in one.verdicts]


def _plots(found: Sequence[Measurement]) -> Iterable[dict[str, Any]]:
    from hdrh.histogram import HdrHistogram  # which `florin bench --help` does not need

    firsts = [rounds[0] for rounds in by_subject(found)]
    several = len(firsts) > 1
    curves = {}
    for one in firsts:
        for mark, latency in one.latencies.items():
            if mark == "lag" or (several and mark != "ok"):
                continue
            histogram = HdrHistogram.decode(latency.histogram)
            name = one.subject if mark == "ok" and several else mark
            borne = [at for at in _PERCENTILES if bears(latency.count, at)]
            curves[name] = [(at, histogram.get_value_at_percentile(at) / 1_000) for at in borne]
    about = "First round. `ok` is the whole journey; other marks are points on its way."
    yield _plot("Latency by percentile", lines(curves, x="percentile", y="ms", has_log_x=True), about)
    rate = {one.subject if several else "ok": [(float(at.second), float(at.ok)) for at in one.series] for one in firsts}
    if not several:
        rate["failed"] = [(float(at.second), float(at.failed)) for at in firsts[0].series]
    yield _plot("Throughput over time", lines(rate, x="seconds", y="journeys/s"))
    p99 = {one.subject: [(float(at.second), at.p99_ms) for at in one.series if at.p99_ms is not None] for one in firsts}
    yield _plot("p99 over time", lines(p99, x="seconds", y="ms"))
    costs = {one.subject: dict(one.cpu_us) for one in firsts if one.cpu_us}
    if costs:
        yield _plot("CPU time of a payment, by component", bars(costs, y="µs"), "First round, including the time after the load.")
    over_time = {
        name: [
            (float(at.second), at.cpu_seconds[name] / at.ok * 1e6) for at in firsts[0].series if at.ok and name in at.cpu_seconds
        ]
        for name in firsts[0].cpu_us
    }
    yield _plot(f"CPU time of a payment over time: {firsts[0].subject}", lines(over_time, x="seconds", y="µs"))
    sizes = {one.subject: [(float(at.second), at.group_items) for at in one.series] for one in firsts if one.group_items}
    if sizes:
        yield _plot("Size of a commit's group", lines(sizes, x="seconds", y="items"), "Rows that shared one fsync, on average.")
    memory = {
        (f"{one.subject} " if several else "") + name: [
            (float(at.second), at.resident_bytes[name] / 1_048_576) for at in one.series if name in at.resident_bytes
        ]
        for one in firsts
        for name in ("worker", "PostgreSQL")
        if name in one.cpu_us and (name == "worker" or not several)
    }
    yield _plot(
        "Memory", lines(memory, x="seconds", y="MiB"), "PostgreSQL's processes share memory, which is counted in each of them."
    )


def _plot(title: str, svg: str, about: str = "") -> dict[str, Any]:
    return {"title": title, "svg": Markup(svg), "about": Markup(re.sub("`([^`]+)`", r"<code>\1</code>", about))}


def _facts(report: Report) -> dict[str, Any]:
    machine = report.machine
    settings = report.measurements[0].settings if report.measurements else {}
    return {
        "processor": f"{machine.processor}, {machine.cores} cores",
        "memory": f"{machine.memory_gib} GiB",
        "system": machine.system,
        "Python": machine.python,
        "PostgreSQL": machine.postgres,
        "packages": ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
        **{name.replace("_", " "): _said(value) for name, value in settings.items() if value is not None},
    }


def _said(value: Any) -> str:
    """A setting in words. The stages of a schedule are pairs of seconds and rate."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", then ".join(f"{rate:,g} per second for {seconds:g} s" if rate else f"{seconds:g} s" for seconds, rate in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,g}" if isinstance(value, int | float) else str(value)
