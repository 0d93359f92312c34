"""Shows where a worker's time goes: stacks sampled under load by py-spy, or PostgreSQL's by perf, and the cost of each part of
the flow.

A sample belongs to the part whose code is nearest to the leaf. The shares are multiplied by the CPU time from /proc, which gives
µs per payment. Sampling slows the worker by about a tenth: the shares are right, and the sum is taken without the sampler.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from bench import INSTALL
from core.errors import FlorinError

RATE_HZ = 250
REST = "everything else"
PARTS: Mapping[str, Sequence[str]] = {
    "notification": (
        "server/jobs/webhooks/parallel.py",
        "server/jobs/webhooks/endpoint_queue.py",
        "server/flows/webhooks/send.py",
        "server/flows/events/live_feeds.py",
    ),
    "commits": ("server/db/",),
    "PSP call": ("server/psp/", "server/http/client/"),
    REST: ("server/api/", "server/flows/", "core/"),
    "HTTP in": ("server/http/server/", "server/http/asgi"),
}
"""The files of each part of the sync flow; the first match from the leaf counts."""
BUDGETS_US = {"HTTP in": 31, "PSP call": 35, "commits": 45, "notification": 35, REST: 60}
"""The budgets of a payment in the design, on the machine where it was measured: 205 µs together."""
ALARMS = {"HTTP in": 6.0, "PSP call": 6.0, "commits": 8.0, "notification": 9.0, REST: 10.0}
"""The cost of a part, in bare HTTP requests of the same run, above which CI fails: half as much again as today."""

_LINE = re.compile(r":\d+\)$")
"""The line in a frame of py-spy's, `function (file:line)`. Other names may contain colons too."""

Stacks = Counter[tuple[str, ...]]


class ProfileError(FlorinError):
    """No profile can be taken; the text says what to do."""


def recorder(component: str, pids: Sequence[int], seconds: float, out: Path) -> list[str]:
    """The command that samples for that many seconds. Raises `ProfileError` if the tool is missing."""
    if component != "PostgreSQL":
        beside = Path(sys.executable).parent / "py-spy"
        tool = str(beside) if beside.exists() else shutil.which("py-spy")
        if tool is None:
            raise ProfileError(f"py-spy is not installed: {INSTALL}")
        options = ["--rate", str(RATE_HZ), "--duration", str(int(seconds)), "--format", "raw", "--output", str(out)]
        return [tool, "record", *options, "--pid", str(pids[0])]
    tool = shutil.which("perf")
    if tool is None:
        raise ProfileError("perf is not installed: apt install linux-perf")
    options = ["-e", "cpu-clock", "-F", str(RATE_HZ), "-g", "-o", str(out), "-p", ",".join(map(str, pids))]
    return [tool, "record", "-q", *options, "--", "sleep", str(int(seconds))]


def read_stacks(component: str, path: Path) -> Stacks:
    """The sampled stacks, outermost frame first. Raises `ProfileError` if there are none."""
    try:
        stacks = _folded(path.read_text().splitlines()) if component != "PostgreSQL" else _scripted(path)
    except (OSError, ValueError) as error:
        raise ProfileError(f"the profile cannot be read: {error}") from error
    if not stacks:
        raise ProfileError("nothing was sampled: tracing other processes needs root, or kernel.yama.ptrace_scope=0")
    return stacks


def _folded(lines: Iterable[str]) -> Stacks:
    stacks: Stacks = Counter()
    for line in lines:
        frames, _, count = line.rpartition(" ")
        stacks[tuple(frames.split(";"))] += int(count)
    return stacks


def _scripted(path: Path) -> Stacks:
    """Parse `perf script`: a header per sample, then its frames from the leaf outwards, then an empty line."""
    command = ["perf", "script", "-i", str(path), "-F", "comm,ip,sym"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    stacks: Stacks = Counter()
    for sample in said.split("\n\n"):
        frames = [line.split(None, 1)[-1] for line in sample.strip().splitlines()[1:]]
        if frames:
            stacks[tuple(reversed(frames))] += 1
    return stacks


def part_of(stack: Sequence[str]) -> str:
    """The part of the flow that a sample belongs to. trio's own time is counted to its caller."""
    client_of = "notification" if any("server/flows/webhooks/send.py" in frame for frame in stack) else None
    for frame in reversed(stack):
        for part, files in PARTS.items():
            if any(file in frame for file in files):
                return client_of or part
    return client_of or REST


def parts(stacks: Stacks, *, worker_us: float) -> dict[str, float]:
    """µs per payment by part."""
    counts: Counter[str] = Counter()
    for stack, count in stacks.items():
        counts[part_of(stack)] += count
    total = counts.total()
    return {part: counts[part] / total * worker_us for part in (*BUDGETS_US,)}


def hottest(stacks: Stacks, most: int) -> list[tuple[str, float]]:
    """The functions with the most samples, and their share."""
    counts: Counter[str] = Counter()
    for stack, count in stacks.items():
        counts[_LINE.sub(")", stack[-1])] += count
    return [(frame, count / counts.total()) for frame, count in counts.most_common(most)]


def flame_graph(stacks: Stacks, *, title: str) -> str:
    """An SVG to read from the top: each box is a function, as wide as its share, above the functions it called."""
    root: dict[str, tuple[int, dict[str, object]]] = {}
    for stack, count in stacks.items():
        level = root
        for frame in stack:
            before, below = level.get(frame, (0, {}))
            level[frame] = (before + count, below)
            level = below  # type: ignore[assignment]  # the tree contains itself
    boxes: list[str] = []
    depth = _draw(root, 0.0, 0, stacks.total(), boxes)
    style = "text{font:11px monospace;fill:#222;pointer-events:none}rect{stroke:#fff}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1600 {18 * (depth + 2)}"><style>{style}</style>'
    return f'{head}<text x="4" y="13">{escape(title)}</text>{"".join(boxes)}</svg>'


def _draw(level: Mapping[str, tuple[int, dict[str, object]]], left: float, depth: int, total: int, boxes: list[str]) -> int:
    deepest = depth
    for frame, (count, below) in sorted(level.items()):
        width = 1_600 * count / total
        if width >= 1.0:
            top = 18 * (depth + 1)
            name, colour = escape(frame), f"hsl({20 + hash(frame.partition('(')[2]) % 40},80%,{66 + hash(frame) % 12}%)"
            boxes.append(f'<g><title>{name}: {count / total:.1%}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}"')
            boxes.append(f' height="17" fill="{colour}"/>')
            boxes.append(f'<text x="{left + 3:.1f}" y="{top + 12}">{escape(frame[: int(width / 6.6)])}</text></g>')
            deepest = max(deepest, _draw(below, left, depth + 1, total, boxes))  # type: ignore[arg-type]  # see above
        left += width
    return deepest
