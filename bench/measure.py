"""CPU time of processes, from /proc: the figure that a noisy machine cannot bend much.

A process's time includes its threads and the children that it has waited for. The kernel counts in ticks of 10 ms, so a
measurement should last a second or more.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that these processes, their threads and their finished children have used so far."""
    total = 0
    for pid in pids:
        try:
            # The second field is the command in brackets and may hold anything; the rest is numbers.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(map(int, fields[11:15]))
    return total / _TICKS_PER_SECOND


def family(pid: int) -> list[int]:
    """A process and all its living descendants."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


@dataclass(slots=True)
class CpuMeter:
    """Measures named groups of processes from when it is made. A group is asked for anew each time."""

    groups: Mapping[str, Callable[[], Iterable[int]]]
    began: dict[str, float]

    @classmethod
    def start(cls, groups: Mapping[str, Callable[[], Iterable[int]]]) -> "CpuMeter":
        """Start measuring."""
        return cls(groups, {name: cpu_seconds(pids()) for name, pids in groups.items()})

    def used_seconds(self) -> dict[str, float]:
        """What each group has used since."""
        return {name: cpu_seconds(pids()) - self.began[name] for name, pids in self.groups.items()}


def percentile(values: list[float], fraction: float) -> float:
    """The value that `fraction` of them do not exceed; 0 for none."""
    return sorted(values)[min(int(len(values) * fraction), len(values) - 1)] if values else 0.0
