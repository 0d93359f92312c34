"""A report in short, for the terminal."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.lab.compare import table
from bench.lab.page import by_subject
from bench.lab.results import Report

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def show(found: Report) -> None:
    """Print the results in short."""
    names = list(dict.fromkeys(name for one in found.measurements for name in one.cpu_us))
    shown = Table(
        "subject",
        "round",
        "offered/s",
        "ok/s",
        "p50 ms",
        "p99 ms",
        "max ms",
        *[f"{name} µs" for name in names],
        "ended",
        box=None,
    )
    for one in (one for group in by_subject(found.measurements) for one in group):
        latency = one.latencies.get("ok")
        found_ms = [latency.at(label) if latency is not None else None for label in ("p50", "p99", "max")]
        times = ["–" if at is None else f"{at:,.1f}" for at in found_ms]
        ended = Text(", ").join([Text(f"{count} {how}", "green" if how == "ok" else "red") for how, count in one.ended.items()])
        offered = "–" if one.offered is None else f"{one.offered:,.0f}"
        cpu = [f"{one.cpu_us.get(name, 0):,.0f}" for name in names]
        shown.add_row(one.subject, str(one.round), offered, f"{one.rate:,.0f}", *times, *cpu, ended)
    console.print(shown)
    for comparison in found.comparisons:
        console.print(table(comparison.ratios, a=comparison.a, b=comparison.b))
    for name, reason in found.left_out.items():
        console.print(f"{name} was left out: {reason}", markup=False)
    for one in found.measurements:
        for verdict in one.verdicts:
            console.print(f"{'met' if verdict.is_met else 'MISSED'}: {verdict.target}: {verdict.found}", markup=False)
        for note in one.notes:
            console.print(f"careful: {note}", markup=False)
    console.print(found.machine.python, markup=False)
    if "PGO" not in found.machine.python:
        console.print("careful: a Python without PGO takes a sixth more: use Debian's (/usr/bin/python3 -m venv)", markup=False)
    broken = {text for one in found.measurements for text in one.broken_promises or []}
    unknown = all(one.broken_promises is None for one in found.measurements)
    console.print("promises: not checked" if unknown else "all promises are kept" if not broken else "BROKEN PROMISES:")
    for text in sorted(broken):
        console.print(f"  {text}", markup=False)


def is_good(found: Report) -> bool:
    """Return whether all targets are met and all promises kept."""
    has_ok = all(one.ended.get("ok") for one in found.measurements)
    is_whole = not any(one.broken_promises for one in found.measurements)
    return has_ok and is_whole and all(verdict.is_met for one in found.measurements for verdict in one.verdicts)
