"""The progress of a batch on a terminal: a bar, the rate, the remaining time, and the number of items by result."""

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from server.cli.output import Output

TOLD_SECONDS = 10.0
_COLOURS = {"SUCCEEDED": "green", "DECLINED": "yellow", "PENDING": "cyan", "UNKNOWN": "magenta", "FAILED": "red"}


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """The rate as text."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


class Progress:
    """Shown on standard error during the block: a bar on a terminal, otherwise a line now and then."""

    def __init__(self, count: int) -> None:
        console = Console(stderr=True)
        self._lines = Output(stderr=True)
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[outcomes]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._console = console
        self._total = count
        self._told_at = time.monotonic()
        self._task = self._bar.add_task("", total=count, outcomes="")
        self._statuses: dict[int, str] = {}

    def begin_with(self, statuses: Mapping[int, str]) -> None:
        """Start with the results of an earlier run."""
        self._statuses.update(statuses)
        self._bar.reset(self._task, completed=len(self._statuses))

    def count(self, number: int, status: str) -> None:
        """Count a result."""
        self._statuses[number] = status
        done = len(self._statuses)
        self._bar.update(self._task, completed=done, outcomes=self._outcomes("[{colour}]{many:,} {one}[/]", "  "))
        if not self._console.is_terminal and time.monotonic() - self._told_at >= TOLD_SECONDS:
            self._told_at = time.monotonic()
            with suppress(OSError):  # nobody may read it
                outcomes = self._outcomes("{many:,} {one}", ", ")
                self._lines.print(f"{done:,} of {self._total:,}: {outcomes}")

    def _outcomes(self, form: str, between: str) -> str:
        counts = Counter(self._statuses.values())
        return between.join(
            form.format(colour=_COLOURS.get(one, "white"), many=many, one=one.lower()) for one, many in sorted(counts.items())
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
