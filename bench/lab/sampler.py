"""Samples the components of a subject under load: CPU time and memory from /proc, the size of commits from its metrics."""

import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.error import URLError

import trio

from bench.lab.subjects import METRICS_TOKEN, Subject
from bench.measure import cpu_seconds, peak_bytes, resident_bytes

_SUM, _COUNT = "florin_commit_group_items_sum", "florin_commit_group_items_count"


@dataclass(slots=True)
class Sample:
    """The usage of one second."""

    at: float
    cpu_seconds: dict[str, float]
    resident_bytes: dict[str, int]
    group_items: float


@dataclass(slots=True)
class Sampler:
    """Takes a sample per second while `run` runs. The processes of components are looked up each time, because they come
    and go.
    """

    subject: Subject
    samples: list[Sample] = field(default_factory=list)
    _batches_at_first: tuple[float, float] | None = None

    async def run(self) -> None:
        """Sample until canceled."""
        before, before_at, batches_before = self._cpu(), time.monotonic(), await self.batches()
        self._batches_at_first = batches_before
        next_at = trio.current_time()
        while True:
            next_at += 1.0
            await trio.sleep_until(next_at)
            now, at = self._cpu(), time.monotonic()
            resident = self._resident()
            batches = await self.batches()
            seconds = max(at - before_at, 0.1)
            self.samples.append(
                Sample(
                    at=at,
                    cpu_seconds={name: (used - before[name]) / seconds for name, used in now.items()},
                    resident_bytes=resident,
                    group_items=_mean(batches_before, batches),
                )
            )
            before, before_at, batches_before = now, at, batches or batches_before

    def peaks(self) -> dict[str, int]:
        """The peak memory of each component, its processes added up; PostgreSQL's processes share some of it."""
        return {name: sum(_peak(pid) for pid in pids()) for name, pids in self.subject.components.items()}

    async def group_items(self) -> float:
        """The mean size of a commit's group since the start; 0 if unknown."""
        return _mean(self._batches_at_first, await self.batches())

    def _cpu(self) -> dict[str, float]:
        return {name: cpu_seconds(pids()) for name, pids in self.subject.components.items()}

    def _resident(self) -> dict[str, int]:
        return {name: sum(resident_bytes(pid) for pid in pids()) for name, pids in self.subject.components.items()}

    async def batches(self) -> tuple[float, float] | None:
        """The number of committed items and groups so far; None if unknown, as with several workers."""
        if not self.subject.has_metrics:
            return None
        try:
            lines = await trio.to_thread.run_sync(_read_metrics, self.subject.url)
        except (URLError, OSError):
            return None
        return _total(lines, _SUM), _total(lines, _COUNT)


def _mean(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float:
    if before is None or after is None or after[1] <= before[1]:
        return 0.0
    return (after[0] - before[0]) / (after[1] - before[1])


def _read_metrics(url: str) -> Mapping[str, float]:
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    with urllib.request.urlopen(request, timeout=2) as response:
        lines = response.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("florin_commit_group_items")]
    return {name: float(value) for name, value in pairs}


def _total(lines: Mapping[str, float], name: str) -> float:
    return sum(value for key, value in lines.items() if key.startswith(name + "{"))


def _peak(pid: int) -> int:
    try:
        return peak_bytes(pid)
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return 0
