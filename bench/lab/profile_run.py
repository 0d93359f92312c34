"""A profile of a scenario: start, warm up, measure without the sampler, then sample under the same load."""

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio
from rich.table import Table

from bench.lab.load import Load, offer, open_generators
from bench.lab.options import RunOptions
from bench.lab.profiling import ALARMS, BUDGETS_US, Stacks, flame_graph, parts, read_stacks, recorder
from bench.lab.run import measure, plan_of, prepare, warm_up
from bench.lab.scenarios import SCENARIOS
from bench.lab.subjects import Setup, open_florin
from bench.micro import http

MEASURED_SECONDS_MAX = 10.0
REQUESTS = 10_000


@dataclass(frozen=True, slots=True)
class Profile:
    """The results. `worker_us`: CPU time per payment without the sampler, of which `parts` are the parts.

    `request_us`: the CPU cost of a bare HTTP request in the same run, by which machines can be compared.
    """

    stacks: Stacks
    worker_us: float
    parts: dict[str, float]
    request_us: float

    def table(self) -> Table:
        """The parts, for the terminal."""
        shown = Table("part", "µs a payment", "budget", "bare requests", "CI limit", box=None)
        for part, microseconds in self.parts.items():
            ratio = f"{microseconds / self.request_us:.1f}"
            shown.add_row(part, f"{microseconds:,.0f}", f"{BUDGETS_US[part]}", ratio, f"{ALARMS[part]:.1f}")
        shown.add_row("together", f"{self.worker_us:,.0f}", f"{sum(BUDGETS_US.values())}")
        return shown


async def profile_scenario(
    name: str, of: str, seconds: float, callers: int | None, path: Path, told: Callable[[str, Load | None], None]
) -> Profile:
    """Take a profile and draw its flame graph. Raises `ProfileError`."""
    scenario = SCENARIOS[name]
    told("a bare request, for comparison", None)
    request_us = await trio.to_thread.run_sync(http.request_us, REQUESTS)
    options = RunOptions(scenario=name, callers=callers, seconds=min(seconds, MEASURED_SECONDS_MAX))
    setup = Setup(merchants=scenario.defaults.merchants, environment=scenario.environment, has_stub=not scenario.pages)
    with tempfile.TemporaryDirectory(prefix="florin-profile-") as directory:
        raw = Path(directory) / "stacks"
        async with open_generators(1) as generators, open_florin(setup, generators) as subject:
            told("warming up", None)
            await prepare(options, scenario, subject)
            await warm_up(options, scenario, subject, generators)
            found = await measure(options, scenario, subject, generators, lambda load: told("measuring", load), number=1)
            command = recorder(of, list(subject.components[of]()), seconds, raw)
            plan = msgspec.structs.replace(plan_of(options, scenario, subject), count_max=1_000_000)
            stages = [msgspec.structs.replace(plan.stages[0], seconds=seconds + 2)]
            plan = msgspec.structs.replace(plan, stages=stages)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(offer, generators, plan, subject.merchants.keys, lambda load: told(f"sampling the {of}", load))
                await trio.sleep(1.0)  # the middle of the load is sampled
                await trio.run_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            stacks = read_stacks(of, raw)
    worker_us = found.cpu_us.get(of, 0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(flame_graph(stacks, title=f"{name}, {of}: {worker_us:,.0f} µs a payment, {stacks.total():,} samples"))
    return Profile(stacks, worker_us, parts(stacks, worker_us=worker_us) if of == "worker" else {}, request_us)
