"""How a batch gets on, for people who watch: a bar, the rate, what is left, and how many items have come to what."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

TOLD_SECONDS = 10.0
_COLOURS = {"SUCCEEDED": "green", "DECLINED": "yellow", "PENDING": "cyan", "UNKNOWN": "magenta", "FAILED": "red"}


class _Rate(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        """As text."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


class Progress:
    """Shown on standard error while the block lasts: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, count: int) -> None:
        console = Console(stderr=True)
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
        self._counts: dict[str, int] = {}

    def count(self, status: str, before: str | None) -> None:
        """One more result is known; it was another one before, or None."""
        self._counts[status] = self._counts.get(status, 0) + 1
        if before is not None:
            self._counts[before] -= 1
        outcomes = "  ".join(
            f"[{_COLOURS.get(one, 'white')}]{many:,} {one.lower()}[/]" for one, many in sorted(self._counts.items()) if many
        )
        done = sum(self._counts.values())
        self._bar.update(self._task, completed=done, outcomes=outcomes)
        if not self._console.is_terminal and time.monotonic() - self._told_at >= TOLD_SECONDS:
            self._told_at = time.monotonic()
            counts = ", ".join(f"{many:,} {one}" for one, many in sorted(self._counts.items()) if many)
            self._console.print(f"{done:,} of {self._total:,}: {counts}", soft_wrap=True, highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
