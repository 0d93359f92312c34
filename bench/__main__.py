"""`florin bench`, or `python -m bench`: the load laboratory.

Every scenario is a command with the same options. `compare` sets two subjects beside each other, `profile` shows where the time
goes, `report` renders a stored report again. Exit code 1: a promise is broken, a target is missed, or no journey succeeded; 130
after Ctrl-C.
"""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import trio
import typer

from bench import INSTALL
from bench.generator.arrivals import Arrivals
from bench.lab.capacity import capacities, find_capacity
from bench.lab.compare import compare as compare_rounds
from bench.lab.compare import rounds_of, table, warnings
from bench.lab.growth import SIZE_MAX, grow, sizes_table
from bench.lab.live import Screen
from bench.lab.options import BenchError, RunOptions, rates_of, require_sense, settings_of
from bench.lab.page import render
from bench.lab.profile_run import profile_scenario
from bench.lab.profiling import hottest
from bench.lab.results import Report, ReportError, read_report, report_directory, write_report
from bench.lab.run import run
from bench.lab.scenarios import SCENARIOS, Scenario, describe
from bench.lab.summary import console, is_good, show
from core.errors import FlorinError, leaves
from server.child_process import allow_many_files
from server.cli.groups import Group
from server.telemetry import configure_logs

app = typer.Typer(
    name="bench",
    help="Measure a Florin under load, alone or beside its peers, and write a report.",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Url = Annotated[str | None, typer.Option(help="A running instance. Default: one is started for the run.")]
Key = Annotated[
    str | None, typer.Option(envvar="FLORIN_API_KEY", help="A test merchant's API key, for --url.", show_default=False)
]
AllowRemote = Annotated[bool, typer.Option("--allow-remote", help="Allow load on another host. Get its owner's consent first.")]
Subjects = Annotated[str, typer.Option(help="florin, asyncio, trio, swoole, or a checkout's directory, separated by commas.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Number of workers.")]
Generators = Annotated[int, typer.Option(min=1, max=16, help="Number of load generators, one process each.")]
Rounds = Annotated[int, typer.Option(min=1, max=50, help="Number of rounds; subjects take turns.")]
Rate = Annotated[float | None, typer.Option(min=0.1, max=100_000, help="Open loop: requests per second.", show_default=False)]
Steps = Annotated[
    str | None, typer.Option(help="Open loop: several rates one after another, separated by commas.", show_default=False)
]
Spread = Annotated[Arrivals | None, typer.Option("--arrivals", help="Spread of an open loop: poisson or constant.")]
Callers = Annotated[int | None, typer.Option(min=1, max=16_000, help="Closed loop: concurrent callers.", show_default=False)]
Seconds = Annotated[float | None, typer.Option(min=1, max=7_200, help="Duration of the load in seconds.", show_default=False)]
Count = Annotated[int | None, typer.Option(min=1, max=10_000_000, help="The most requests.", show_default=False)]
WarmUp = Annotated[float, typer.Option("--warm-up", min=0, max=600, help="Seconds of load before the measurement.")]
Merchants = Annotated[int | None, typer.Option(min=1, max=5_000, help="Number of merchants.", show_default=False)]
PspMs = Annotated[int | None, typer.Option("--psp-ms", min=0, max=60_000, help="The PSP's response time in milliseconds.")]
Sockets = Annotated[int | None, typer.Option(min=1, max=15_000, help="Number of websockets (`stream`).", show_default=False)]
Items = Annotated[int | None, typer.Option(min=1, max=10_000, help="Items per batch (`batch`).", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="FLORIN_X=Y", help="A setting of the started Florin.")]
Out = Annotated[Path | None, typer.Option(help="Report directory. Default: bench-results/TIME-SCENARIO.", show_default=False)]


def _scenario_command(name: str) -> None:
    scenario = SCENARIOS[name]

    def command(
        url: Url = None,
        key: Key = None,
        allow_remote: AllowRemote = False,
        subjects: Subjects = "florin",
        workers: Workers = 1,
        generators: Generators = 1,
        rounds: Rounds = 1,
        rate: Rate = None,
        steps: Steps = None,
        arrivals: Spread = None,
        callers: Callers = None,
        seconds: Seconds = None,
        count: Count = None,
        warm_up: WarmUp = 4.0,
        merchants: Merchants = None,
        psp_ms: PspMs = None,
        sockets: Sockets = None,
        items: Items = None,
        settings: Set = None,
        out: Out = None,
    ) -> None:
        options = RunOptions(
            scenario=name,
            subjects=[one.strip() for one in subjects.split(",") if one.strip()],
            url=url,
            key=key if url is not None else None,
            allow_remote=allow_remote,
            workers=workers,
            generators=generators,
            rounds=rounds,
            rate=rate,
            steps=rates_of(steps),
            arrivals=arrivals,
            callers=callers,
            seconds=seconds,
            count=count,
            warm_up_seconds=warm_up,
            merchants=merchants,
            psp_ms=psp_ms,
            sockets=sockets,
            items=items,
            settings=settings_of(settings or []),
        )
        with report_directory(out or _place(name)) as place:
            report = measured(options)
            _keep(report, place)
        show(report)
        raise typer.Exit(0 if is_good(report) else 1)

    command.__doc__ = scenario.about[0].upper() + scenario.about[1:] + f". Default: {_defaults(name)}."
    app.command(name)(command)


def _defaults(name: str) -> str:
    defaults = SCENARIOS[name].defaults
    return f"{describe(Arrivals.POISSON, rate=defaults.rate, callers=defaults.callers)}, at most {defaults.seconds:g} s"


def measured(options: RunOptions) -> Report:
    """Carry out a run, showing its progress."""
    scenario = _prepared(options)
    seconds = options.seconds or scenario.defaults.seconds
    with Screen(f"florin bench {options.scenario}", seconds) as screen:
        return trio.run(run, options, scenario, screen.tell)


def _require_packages() -> None:
    """Raise `BenchError` without the packages that only the laboratory needs."""
    if find_spec("hdrh") is None:
        raise BenchError(f"the laboratory needs hdrhistogram: {INSTALL}")


def _prepared(options: RunOptions) -> Scenario:
    """Check the options, and set this process up for a run. Returns the scenario."""
    scenario = SCENARIOS[options.scenario]
    _require_packages()
    require_sense(options, scenario)
    configure_logs("error")
    allow_many_files()
    return scenario


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A subject (florin, asyncio, trio, swoole), a checkout, or a report: FILE[:SUBJECT].")],
    b: Annotated[str, typer.Argument(help="The subject, checkout or report to compare with it.")],
    scenario: Annotated[str, typer.Option(help="The scenario, if subjects are given.")] = "sync",
    rounds: Annotated[int, typer.Option(min=3, max=50, help="Rounds of each, in turn.")] = 7,
    count: Count = 4_000,
    callers: Callers = None,
    rate: Rate = None,
    workers: Workers = 1,
    seconds: Seconds = None,
    out: Out = None,
) -> None:
    """Compare two subjects: ratios of B to A with their confidence, from rounds in turn."""
    if scenario not in SCENARIOS:
        raise BenchError(f"unknown scenario {scenario!r}: expected one of {', '.join(SCENARIOS)}")
    if _file(a) is not None or _file(b) is not None:
        first, second = _of_file(a), _of_file(b)
        _show_ratios(first, second, a, b)
        return
    shape = RunOptions(scenario=scenario, rounds=rounds, count=count, callers=callers, rate=rate, seconds=seconds)
    with report_directory(out or _place(f"compare-{scenario}")) as place:
        report = measured(replace(shape, subjects=[a, b], workers=workers))
        _keep(report, place)
    show(report)
    if not report.comparisons:
        left_out = [f"{name} was left out: {why}" for name, why in report.left_out.items()]
        raise BenchError("; ".join(left_out) or "too few rounds succeeded to compare")
    raise typer.Exit(0 if is_good(report) else 1)


def _file(text: str) -> Path | None:
    path = Path(text.partition(":")[0])
    return path if path.suffix == ".json" else None


def _of_file(text: str) -> tuple[Report, str | None]:
    path = _file(text)
    if path is None:
        raise BenchError(f"a report can only be compared with a report, and {text} is not one")
    return read_report(path), text.partition(":")[2] or None


def _show_ratios(a: tuple[Report, str | None], b: tuple[Report, str | None], name_a: str, name_b: str) -> None:
    first, second = rounds_of(*a, None), rounds_of(*b, None)
    console.print(table(compare_rounds(first, second), a=name_a, b=name_b))
    for warning in warnings(a[0], b[0]):
        console.print(f"careful: {warning}")


@app.command()
def capacity(
    p99_ms: Annotated[float, typer.Option("--p99-ms", min=1, max=60_000, help="Objective in milliseconds.")] = 50.0,
    scenario: Annotated[str, typer.Option(help="The scenario.")] = "sync",
    subjects: Subjects = "florin",
    workers: Workers = 1,
    generators: Generators = 1,
    arrivals: Spread = None,
    seconds: Annotated[float, typer.Option(min=2, max=600, help="Seconds at each rate.")] = 8.0,
    merchants: Merchants = None,
    psp_ms: PspMs = None,
    settings: Set = None,
) -> None:
    """Find the highest rate at which p99 holds, by bisection, for each subject."""
    if scenario not in SCENARIOS or SCENARIOS[scenario].is_timed:
        raise BenchError(f"the scenario must be one of {', '.join(name for name, one in SCENARIOS.items() if not one.is_timed)}")
    options = RunOptions(
        scenario=scenario,
        subjects=[one.strip() for one in subjects.split(",") if one.strip()],
        workers=workers,
        generators=generators,
        arrivals=arrivals,
        rate=1.0,
        seconds=seconds,
        merchants=merchants,
        psp_ms=psp_ms,
        settings=settings_of(settings or []),
    )
    wanted = _prepared(options)
    with Screen("florin bench capacity", seconds) as screen:
        found, left_out, broken = trio.run(find_capacity, options, wanted, p99_ms, screen.tell)
    console.print(capacities(found, p99_ms))
    for name, why in left_out.items():
        console.print(f"{name} was left out: {why}", markup=False)
    console.print("BROKEN PROMISES: " + "; ".join(broken) if broken else "all promises are kept", markup=False)
    raise typer.Exit(1 if broken or not all(one.rate for one in found) else 0)


@app.command()
def profile(
    scenario: Annotated[str, typer.Argument(help="The scenario to run meanwhile.")] = "sync",
    of: Annotated[str, typer.Option(help="worker (py-spy) or PostgreSQL (perf).")] = "worker",
    seconds: Annotated[float, typer.Option(min=2, max=600, help="Seconds of sampling.")] = 10.0,
    callers: Callers = None,
    out: Out = None,
) -> None:
    """Show where the time of a payment goes: by part of the flow, by function, and as a flame graph."""
    if scenario not in SCENARIOS or of not in ("worker", "PostgreSQL"):
        raise BenchError(f"the scenario must be one of {', '.join(SCENARIOS)}, and --of worker or PostgreSQL")
    _require_packages()
    configure_logs("error")
    allow_many_files()
    path = (out or _place(f"profile-{scenario}")) / "flame.svg"
    with Screen(f"florin bench profile {scenario}", seconds) as screen:
        found = trio.run(profile_scenario, scenario, of, seconds, callers, path, screen.tell)
    if of == "worker":
        console.print(found.table())
        console.print(f"a bare request of the wire costs {found.request_us:.0f} µs in this run")
    for frame, share in hottest(found.stacks, 20):
        console.print(f"{share:6.1%}  {frame}", markup=False)
    console.print(f"flame graph: {path}", markup=False)


@app.command()
def growth(
    sizes: Annotated[str, typer.Option(help="Numbers of stored payments, separated by commas.")] = "100,10000,1000000",
    count: Annotated[int, typer.Option(min=100, max=1_000_000, help="Payments measured at each size.")] = 3_000,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Rounds at each size.")] = 3,
    out: Out = None,
) -> None:
    """Measure the cost of a payment as the tables grow. Ten million payments take half an hour and 40 GB."""
    try:
        wanted = [int(one) for one in sizes.replace("_", "").split(",")]
    except ValueError as error:
        raise BenchError(f"--sizes takes numbers separated by commas, not {sizes!r}") from error
    if min(wanted) < 1 or max(wanted) > SIZE_MAX:
        raise BenchError(f"--sizes must be between 1 and {SIZE_MAX:,}")
    _require_packages()
    configure_logs("error")
    with report_directory(out or _place("growth")) as place:
        with Screen("florin bench growth", 60.0) as screen:
            report, found = trio.run(partial(grow, wanted, count=count, rounds=rounds, told=screen.tell))
        _keep(report, place)
    console.print(sizes_table(found))


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="A report.json.")],
    out: Annotated[Path | None, typer.Option(help="Default: beside it.", show_default=False)] = None,
) -> None:
    """Show a stored report, and render its page again."""
    found = read_report(file)
    path = out or file.with_suffix(".html")
    try:
        path.write_text(render(found), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error}. Choose another directory with --out") from error
    show(found)
    console.print(f"page: {path}", markup=False)


def _place(name: str) -> Path:
    return Path("bench-results") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"


def _keep(found: Report, directory: Path) -> None:
    try:
        write_report(found, directory / "report.json")
        (directory / "report.html").write_text(render(found), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"the report cannot be written to {directory}: {error}. Choose another directory with --out") from error
    console.print(f"report: {directory / 'report.html'}", markup=False)


for _name in SCENARIOS:
    _scenario_command(_name)


def main(arguments: list[str] | None = None) -> None:
    """Run a command. An expected failure becomes one line on standard error."""
    try:
        app(arguments, prog_name="florin bench")
    except (FlorinError, KeyboardInterrupt, OSError, trio.TooSlowError, BaseExceptionGroup) as error:
        errors = leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
        if any(isinstance(one, KeyboardInterrupt) for one in errors):
            sys.exit(130)
        if not all(isinstance(one, FlorinError | OSError | trio.TooSlowError) for one in errors):
            raise
        for text in dict.fromkeys(str(one) or "something did not end in time" for one in errors):
            print(f"florin bench: {text}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
