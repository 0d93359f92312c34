"""The results of a run as stored in JSON: enough to judge the figures without having been there.

Times are UTC; latencies are in milliseconds since the intended start (closed loop: the actual one); CPU is user and system time
of processes from /proc, in µs per successful payment. The format is `FORMAT`; a reader refuses any other.
"""

import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from core.errors import FlorinError

FORMAT = 1
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
_PACKAGES = ("trio", "httptools", "psycopg", "msgspec", "uvicorn", "uvloop", "starlette", "asyncpg", "aiohttp", "hypercorn")


class ReportError(FlorinError):
    """A report cannot be read; the text says what to do."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of the run."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    postgres: str
    packages: dict[str, str]


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """The latency of successful journeys, or up to a mark on their way. `histogram` is HdrHistogram's compressed form, in µs.

    `milliseconds` has the percentiles that so many journeys bear, and always the maximum.
    """

    count: int
    milliseconds: dict[str, float]
    histogram: str

    def at(self, label: str) -> float | None:
        """A percentile, or None if there were too few journeys for it."""
        return self.milliseconds.get(label) if bears(self.count, PERCENTILES[label]) else None


def bears(count: int, percentile: float) -> bool:
    """Return whether so many values tell a percentile: at least one of them lies above it."""
    return percentile >= 100 or count * (100 - percentile) >= 99.99


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One whole second. `p99_ms` is None if too few journeys ended in it. `cpu_seconds` and `resident_bytes` are by component;
    `group_items` is the mean size of a commit's group.
    """

    second: int
    begun: int
    ok: int
    failed: int
    in_flight: int
    told: int
    p50_ms: float
    p99_ms: float | None
    max_ms: float
    cpu_seconds: dict[str, float] = {}
    resident_bytes: dict[str, int] = {}
    group_items: float = 0.0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A target, and whether it was met."""

    target: str
    found: str
    is_met: bool


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario of one subject, once.

    `ended`: the number of journeys by result; `not_begun`: those that the schedule asked for and the generator had no room for.
    `rate` counts successful payments; `offered` the journeys that an open loop's schedule asked for; both per second.
    `broken_promises` must be empty; None if they could not be checked.
    """

    scenario: str
    subject: str
    round: int
    began_at: datetime
    settings: dict[str, Any]
    seconds: float
    begun: int
    not_begun: int
    ended: dict[str, int]
    told: int
    payments: int
    rate: float
    offered: float | None = None
    latencies: dict[str, Latency]
    series: list[Moment]
    cpu_us: dict[str, float]
    peak_bytes: dict[str, int]
    group_items: float
    broken_promises: list[str] | None
    verdicts: list[Verdict]
    notes: list[str]


class Ratio(msgspec.Struct, frozen=True):
    """A figure of one subject divided by that of another: the mean, and the bounds of its 95 % interval."""

    what: str
    a: float
    b: float
    middle: float
    low: float
    high: float

    @property
    def is_certain(self) -> bool:
        """Return whether the difference exceeds the noise."""
        return not self.low <= 1.0 <= self.high


class Comparison(msgspec.Struct, frozen=True):
    """Subject `b` beside subject `a`, in one scenario, by interleaved rounds."""

    scenario: str
    a: str
    b: str
    ratios: list[Ratio]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    format: int
    florin: str
    commit: str
    command: str
    began_at: datetime
    machine: Machine
    measurements: list[Measurement]
    left_out: dict[str, str]
    comparisons: list[Comparison] = []


def write_report(report: Report, path: Path) -> None:
    """Write a report, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    part.replace(path)


@contextmanager
def report_directory(directory: Path) -> Iterator[Path]:
    """A directory for the report, made before the run; one that stays empty is removed, with those that were made for it."""
    made = [one for one in (directory, *directory.parents) if not one.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"the report cannot be written to {directory}: {error}. Choose another directory with --out") from error
    try:
        yield directory
    finally:
        for one in made:
            if not any(one.iterdir()):
                one.rmdir()


def read_report(path: Path) -> Report:
    """Read a report. Raises `ReportError`."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise ReportError(f"{path} is not a report of `florin bench`: {error}") from error
    if report.format != FORMAT:
        raise ReportError(f"{path} has format {report.format}, and this version reads {FORMAT}: measure again")
    return report


def new_report(command: str, measurements: list[Measurement], left_out: dict[str, str], *, postgres: str) -> Report:
    """A report with the facts about machine and versions."""
    return Report(
        format=FORMAT,
        florin=metadata.version("florin"),
        commit=commit_of(Path(__file__).parent.parent.parent),
        command=command,
        began_at=measurements[0].began_at if measurements else datetime.now(UTC),
        machine=machine(postgres=postgres),
        measurements=measurements,
        left_out=left_out,
    )


def machine(*, postgres: str) -> Machine:
    """This machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Machine(
        processor=names[0] if names else platform.processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory, 1),
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}, {python_build()}",
        postgres=postgres,
        packages=found,
    )


def python_build() -> str:
    """The optimizations with which this Python was built. Debian's own does not tell, and always has both."""
    if sys.base_prefix == "/usr" and Path("/etc/debian_version").exists():
        return "Debian's, with PGO and LTO"
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = {"PGO": "--enable-optimizations", "LTO": "--with-lto"}
    return " and ".join("with " + name for name, flag in flags.items() if flag in arguments) or "without optimization"


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, with a `+` if it was changed since; empty if it is not one."""
    git = ["git", "-C", str(checkout)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")
