"""The progress of a run: a bar, the rate and latencies of the last second, and the failures so far.

On a terminal it is redrawn on standard error; elsewhere one line is written every ten seconds, so that a log stays readable.
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.generator.plan import Second
from bench.lab.load import Load
from bench.measure import percentile

TOLD_SECONDS = 10.0
SHOWN_SECONDS = 40
_BARS = " ▁▂▃▄▅▆▇█"


class Screen:
    """Shown during the block."""

    def __init__(self, title: str, seconds: float) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._title = title
        self._seconds = seconds
        self._live = Live(console=self._console, transient=True, refresh_per_second=4, auto_refresh=self._console.is_terminal)
        self._told_at = 0.0
        self._doing = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def tell(self, doing: str, load: Load | None) -> None:
        """Show the current activity, and the results so far."""
        is_new, self._doing = doing != self._doing, doing
        if self._console.is_terminal:
            self._live.update(self._draw(load))
        elif is_new or time.monotonic() - self._told_at >= TOLD_SECONDS:
            self._told_at = time.monotonic()
            self._console.print(f"{self._title}: {doing}{_line(load)}", markup=False, soft_wrap=True)

    def _draw(self, load: Load | None) -> Group:
        rows = [Text.assemble((self._title, "bold"), "  ", self._doing)]
        if load is None or not load.series:
            return Group(*rows)
        second = load.series[-1]
        rates = [one.ended.get("ok", 0) for one in load.series[-SHOWN_SECONDS:]]
        table = Table.grid(padding=(0, 3))
        for name, value in _figures(second).items():
            table.add_row(name, value)
        failures = {how: count for one in load.series for how, count in one.ended.items() if how != "ok"}
        wrong = Text("  ".join(f"{how} x {count}" for how, count in failures.items()), style="yellow")
        bar = ProgressBar(total=self._seconds, completed=min(second.number, self._seconds), width=SHOWN_SECONDS)
        return Group(*rows, bar, table, Text(_sparks(rates), style="cyan"), wrong)


def _line(load: Load | None) -> str:
    if load is None or not load.series:
        return ""
    return ": " + ", ".join(f"{name} {value}" for name, value in _figures(load.series[-1]).items())


def _figures(second: Second) -> dict[str, str]:
    values = [float(value) / 1_000 for value in second.latencies_us]
    failed = sum(count for how, count in second.ended.items() if how != "ok")
    return {
        "second": f"{second.number}",
        "ok": f"{second.ended.get('ok', 0):,}/s",
        "failed": f"{failed:,}/s",
        "in flight": f"{second.in_flight:,}",
        "p50": f"{percentile(values, 0.5):,.1f} ms",
        "p99": f"{percentile(values, 0.99):,.1f} ms",
    }


def _sparks(values: list[int]) -> str:
    most = max([*values, 1])
    return "".join(_BARS[min(value * (len(_BARS) - 1) // most, len(_BARS) - 1)] for value in values)
