"""CPU time of processes, which a noisy machine distorts little; programs to measure, and a directory for their data.

A process's time includes its threads, to the nanosecond, and the children that it has waited for, in ticks of 10 ms.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0))
MEASURED_CORE, LOAD_CORE = CORES[0], CORES[-1]
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that is removed at the end of the block. As root PostgreSQL runs below it as another user, who may enter it."""
    with tempfile.TemporaryDirectory(prefix="florin-bench-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o711)
        yield directory


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that these processes, their threads and their finished children have used so far."""
    total = 0.0
    for pid in pids:
        try:
            # the second field is the command in brackets, with any characters; the rest is numbers
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += time.clock_gettime(_cpu_clock(pid))
        except OSError:  # it has ended
            continue
        total += sum(map(int, fields[13:15])) / _TICKS_PER_SECOND
    return total


def _cpu_clock(pid: int) -> int:
    """The id of a process's CPU clock, as clock_getcpuclockid(3) makes it; /proc counts in ticks, which are too coarse for a
    short run.
    """
    return (~pid << 3) | 2


def peak_bytes(pid: int) -> int:
    """The peak resident memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1_024


def resident_bytes(pid: int) -> int:
    """The resident memory of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def process_tree(pid: int) -> list[int]:
    """A process and all its living descendants."""
    found = [pid]
    for one in found:
        try:
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@dataclass(slots=True)
class CpuMeter:
    """Measures named groups of processes from its creation on. The processes of a group are looked up each time."""

    groups: Mapping[str, Callable[[], Iterable[int]]]
    began: dict[str, float]

    @classmethod
    def start(cls, groups: Mapping[str, Callable[[], Iterable[int]]]) -> "CpuMeter":
        """Start measuring."""
        return cls(groups, {name: cpu_seconds(pids()) for name, pids in groups.items()})

    def used_seconds(self) -> dict[str, float]:
        """The CPU time of each group since the start."""
        return {name: cpu_seconds(pids()) - self.began[name] for name, pids in self.groups.items()}


def percentile(values: list[float], fraction: float) -> float:
    """The value that `fraction` of them do not exceed; 0 for none."""
    return sorted(values)[min(int(len(values) * fraction), len(values) - 1)] if values else 0.0


@dataclass(slots=True)
class Program:
    """A measured program: one process on its own core."""

    process: subprocess.Popen[str]

    @property
    def cpu_seconds(self) -> float:
        """Its CPU time so far."""
        return cpu_seconds([self.process.pid])

    @property
    def resident_bytes(self) -> int:
        """Its resident memory."""
        return resident_bytes(self.process.pid)


@contextmanager
def program(module: str, *arguments: str, core: int, sockets: Iterable[socket.socket] = ()) -> Iterator[Program]:
    """Run `python -m module` on one core, with pipes to its input and output and these sockets; killed at the end."""
    descriptors = [one.fileno() for one in sockets]
    command = ["taskset", "-c", str(core), sys.executable, "-m", module, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors, text=True, bufsize=1
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


def interleaved(subjects: Mapping[str, Callable[[], float]], *, repeats: int) -> dict[str, list[float]]:
    """Measure each subject in turn, again and again, so that changes of the machine meet all of them."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, measure in subjects.items():
            found[name].append(measure())
    return found
