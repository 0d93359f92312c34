"""One run: start the subjects, warm them up, offer the load, wait for the end of all work, check every promise, and write the
report.

Subjects take turns, round after round, so that changes of the machine meet all of them.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from bench.generator.arrivals import Arrivals, Stage, steps
from bench.generator.plan import IN_FLIGHT_MAX, Plan
from bench.lab.compare import compared
from bench.lab.load import SETTLE_SECONDS, START_SECONDS, Generator, Load, offer, open_generators, settle
from bench.lab.options import BenchError, RunOptions, command_line, shown_settings
from bench.lab.results import PERCENTILES, Latency, Measurement, Moment, Report, bears, new_report
from bench.lab.sampler import Sample, Sampler
from bench.lab.scenarios import Scenario, counted
from bench.lab.subjects import ROOT, Merchants, Setup, Subject, missing_peer, open_florin, open_peer, require_alive
from bench.measure import CpuMeter, percentile
from server.db.connection import open_session
from server.db.doctor.run import broken_promises
from server.http.client.client import open_client

PROMISES_SECONDS = 300.0
PARTIAL_SECONDS = 0.05
"""A second that ended so little before its time is whole."""

SLOW_PEERS = {"trio": 10, "asyncio": 2}
"""Expensive scenarios are given a share of the count, so that a round ends."""


Told = Callable[[str, Load | None], None]
"""Called with the current activity, and each second with the load's results."""


async def run(options: RunOptions, scenario: Scenario, told: Told) -> Report:
    """Carry out a run. Raises `BenchError` or `SubjectError`."""
    measurements: list[Measurement] = []
    left_out: dict[str, str] = {}
    postgres = "unknown"
    async with open_generators(options.generators) as generators, AsyncExitStack() as stack:
        told("starting", None)
        subjects = await open_subjects(options, scenario, generators, stack, left_out)
        for subject in subjects:
            told(f"{subject.name}: warming up", None)
            await prepare(options, scenario, subject)
            await warm_up(options, scenario, subject, generators)
        for number in range(1, options.rounds + 1):
            # Every second round in reverse: being first or last is an advantage for nobody.
            for subject in subjects if number % 2 else reversed(subjects):
                title = subject.name + (f", round {number} of {options.rounds}" if options.rounds > 1 else "")
                await rest(subject)
                measurements.append(await measure(options, scenario, subject, generators, partial(told, title), number=number))
        told("checking every promise", None)
        for database_url, (postgres, broken) in (await checked(subjects)).items():  # noqa: B007 - used after the loop
            names = {one.name for one in subjects if one.database_url == database_url}
            measurements = [
                msgspec.structs.replace(one, broken_promises=broken) if one.subject in names else one for one in measurements
            ]
    report = new_report(command_line(sys.argv[1:]), measurements, left_out, postgres=postgres)
    return msgspec.structs.replace(report, comparisons=compared(report))


async def checked(subjects: Sequence[Subject]) -> dict[str, tuple[str, list[str]]]:
    """The PostgreSQL of each database of these subjects, and what `florin doctor` finds in it."""
    urls = dict.fromkeys(one.database_url for one in subjects if one.database_url is not None)
    return {url: await _promises(url) for url in urls}


async def _promises(database_url: str) -> tuple[str, list[str]]:
    """The PostgreSQL of the run, and what `florin doctor` finds in it."""
    async with open_session(database_url) as connection:
        said = [str((await connection.query(f"SHOW {name}"))[0][0]) for name in ("server_version", "fsync", "synchronous_commit")]
        with trio.fail_after(PROMISES_SECONDS):
            broken = [f"{one.check.name}: {len(one.rows)} rows" for one in await broken_promises(connection)]
    return f"{said[0]}, fsync {said[1]}, synchronous_commit {said[2]}", broken


async def rest(subject: Subject) -> None:
    """Write out the pages of earlier rounds, so that no round pays for another one's."""
    if subject.database_url is not None:
        async with open_session(subject.database_url) as connection:
            await connection.execute("CHECKPOINT")


async def open_subjects(
    options: RunOptions, scenario: Scenario, generators: Sequence[Generator], stack: AsyncExitStack, left_out: dict[str, str]
) -> list[Subject]:
    """Start the subjects for as long as the stack is open. Raises `BenchError` if all had to be left out."""
    if options.url is not None:
        return [_existing(options, generators)]
    setup = Setup(
        workers=options.workers,
        merchants=options.merchants or scenario.defaults.merchants,
        environment={**scenario.environment, **options.settings},
        has_stub=not scenario.pages,
    )
    beside: Subject | None = None
    found: list[Subject] = []
    for name in options.subjects:
        if name == "florin" or Path(name).is_dir():
            checkout = ROOT if name == "florin" else Path(name).resolve()
            title = name if all(one.name != name for one in found) else f"{name} again"
            one = await stack.enter_async_context(open_florin(replace(setup, checkout=checkout), generators, name=title))
            beside = beside or one
            found.append(one)
        elif reason := missing_peer(name):
            left_out[name] = reason
        else:
            if beside is None:  # whose database and PSP it uses
                beside = await stack.enter_async_context(open_florin(setup, generators))
            found.append(await stack.enter_async_context(open_peer(name, beside, workers=options.workers)))
    if not found:
        raise BenchError("nothing is left to measure: " + "; ".join(left_out.values()))
    return found


def _existing(options: RunOptions, generators: Sequence[Generator]) -> Subject:
    """A running instance: what can be known of it from outside."""
    assert options.url is not None
    keys = [[options.key or ""] for _ in generators]
    components = {"load": lambda: [one.process.pid for one in generators]}
    return Subject(name=options.url, url=options.url.rstrip("/"), psp_url=None, components=components, merchants=Merchants(keys))


async def prepare(options: RunOptions, scenario: Scenario, subject: Subject) -> None:
    """Set the PSP's behavior for the scenario."""
    psp_ms = options.psp_ms if options.psp_ms is not None else scenario.defaults.psp_ms
    if subject.psp_url is None or not (psp_ms or scenario.loses_webhooks):
        return
    wanted: dict[str, Any] = {"latency": {"seconds": psp_ms / 1_000} if psp_ms else None}
    if scenario.loses_webhooks:
        wanted["webhooks"] = "lose"
    await _control(subject, wanted)


async def _control(subject: Subject, wanted: Mapping[str, Any]) -> None:
    """Set the PSP's behavior."""
    async with open_client() as http:
        response = await http.request("POST", f"{subject.psp_url}/control", body=msgspec.json.encode(wanted))
    if response.status != 200:
        raise BenchError(f"the PSP refused {', '.join(wanted)}: it answered {response.status}")


def plan_of(options: RunOptions, scenario: Scenario, subject: Subject) -> Plan:
    """The load, before it is divided."""
    defaults = scenario.defaults
    rate = options.steps[0] if options.steps else options.rate
    rate = rate if rate is not None else (defaults.rate if options.callers is None else None)
    seconds = options.seconds if options.seconds is not None else defaults.seconds
    callers = options.callers or defaults.callers
    arrivals = Arrivals.CLOSED if rate is None else options.arrivals or Arrivals.POISSON
    count = options.count or defaults.count
    return Plan(
        scenario=scenario.journey,
        url=subject.url,
        psp_url=subject.psp_url,
        keys=[],
        arrivals=arrivals,
        stages=steps(options.steps, seconds=seconds / len(options.steps))
        if options.steps
        else scenario.stages(seconds, rate or 0.0),
        callers=callers,
        count_max=max(count // SLOW_PEERS.get(subject.name, 1), 1),
        begin_at=0.0,
        connections_max=callers if rate is None else IN_FLIGHT_MAX,
        timeout_seconds=330.0 if scenario.journey == "batch" else 60.0,
        hears_webhooks=scenario.hears_webhooks and options.url is None,
        hears_stream=scenario.hears_stream,
        sockets=options.sockets if options.sockets is not None else defaults.sockets,
        items=(options.items or defaults.items) if scenario.journey == "batch" else 1,
    )


async def warm_up(options: RunOptions, scenario: Scenario, subject: Subject, generators: Sequence[Generator]) -> None:
    """Load a subject for a moment, unmeasured. Raises `BenchError` if no journey succeeds, because there is nothing to measure
    then.
    """
    if options.warm_up_seconds <= 0:
        return
    plan = plan_of(options, scenario, subject)
    seconds = options.warm_up_seconds
    stages = [Stage(seconds, plan.stages[0].rate)]
    count = max(plan.count_max // 5, plan.callers) if scenario.journey != "batch" else 1
    items = min(plan.items, 100)
    plan = msgspec.structs.replace(plan, stages=stages, count_max=count, items=items)
    load = await offer(generators, plan, subject.merchants.keys)
    if not load.succeeded:
        raise BenchError(f"{subject.name}: none of {load.begun} {scenario.journey} journeys succeeded: {counted(load.ended)}")
    await settle(subject.database_url)
    await _told_late(generators, plan, subject)


async def measure(
    options: RunOptions,
    scenario: Scenario,
    subject: Subject,
    generators: Sequence[Generator],
    on_second: Callable[[Load | None], None],
    *,
    number: int,
) -> Measurement:
    """Measure one scenario of one subject, once."""
    plan = plan_of(options, scenario, subject)
    sampler = Sampler(subject)
    began_at = datetime.now(UTC)
    meter = CpuMeter.start(subject.components)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sampler.run)
        if scenario.outage is not None and subject.psp_url is not None:
            nursery.start_soon(partial(_stop_psp, subject, *scenario.outage(plan.seconds)))
        began = time.monotonic()
        load = await offer(generators, plan, subject.merchants.keys, on_second)
        nursery.cancel_scope.cancel()
    require_alive(subject)
    is_settled = await settle(subject.database_url)
    load.told += await _told_late(generators, plan, subject)
    used = meter.used_seconds()
    payments = load.succeeded * plan.items
    series = _moments(load, sampler.samples, began)
    return Measurement(
        scenario=options.scenario,
        subject=subject.name,
        round=number,
        began_at=began_at,
        settings=_settings(options, plan),
        seconds=load.seconds,
        begun=load.begun,
        not_begun=load.not_begun,
        ended=load.ended,
        told=load.told,
        payments=payments,
        rate=payments / load.seconds if load.seconds else 0.0,
        offered=_offered(load, plan),
        latencies={name: _latency(load, name) for name in sorted(load.histograms)},
        series=series,
        cpu_us={name: seconds / payments * 1e6 for name, seconds in used.items()} if payments else {},
        peak_bytes=sampler.peaks(),
        group_items=await sampler.group_items(),
        broken_promises=None,
        verdicts=scenario.verdicts(load, series, plan.seconds),
        notes=_notes(options, plan, load, is_settled=is_settled),
    )


async def _told_late(generators: Sequence[Generator], plan: Plan, subject: Subject) -> int:
    """The number of notifications that arrived after the end of a plan, counted by an empty plan."""
    silence = msgspec.structs.replace(plan, arrivals=Arrivals.CLOSED, stages=[Stage(0.1, 0.0)], callers=0, hears_stream=False)
    return (await offer(generators, silence, subject.merchants.keys)).told


async def _stop_psp(subject: Subject, begin: float, end: float) -> None:
    """The PSP's outage."""
    await trio.sleep(begin)
    await _control(subject, {"down": True})
    try:
        await trio.sleep(end - begin)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await _control(subject, {"down": False})


def _latency(load: Load, name: str) -> Latency:
    histogram = load.histograms[name]
    count = histogram.get_total_count()
    return Latency(
        count=count,
        milliseconds={label: load.latency_ms(at, name) for label, at in PERCENTILES.items() if bears(count, at)},
        histogram=histogram.encode().decode(),
    )


def _moments(load: Load, samples: Sequence[Sample], began: float) -> list[Moment]:
    found = []
    for second in load.series:
        if second.number > max(load.seconds + PARTIAL_SECONDS, 1.0):
            continue  # the load ended in the middle of it, so its figures are not those of a second
        ended = began + START_SECONDS + second.number
        near = [one for one in samples if abs(one.at - ended) <= 0.5]
        sample = near[0] if near else Sample(ended, {}, {}, 0.0)
        values = [float(value) / 1_000 for value in second.latencies_us]
        ok = second.ended.get("ok", 0)
        found.append(
            Moment(
                second=second.number,
                begun=second.begun,
                ok=ok,
                failed=sum(second.ended.values()) - ok,
                in_flight=second.in_flight,
                told=second.told,
                p50_ms=percentile(values, 0.5),
                p99_ms=percentile(values, 0.99) if bears(len(values), 99.0) else None,
                max_ms=second.max_us / 1_000,
                cpu_seconds=sample.cpu_seconds,
                resident_bytes=sample.resident_bytes,
                group_items=sample.group_items,
            )
        )
    return found


def _offered(load: Load, plan: Plan) -> float | None:
    """The journeys per second that the schedule asked for, begun or not; None in a closed loop."""
    if plan.arrivals is Arrivals.CLOSED or not load.seconds:
        return None
    return (load.begun + load.not_begun) / min(sum(stage.seconds for stage in plan.stages), load.seconds)


def _settings(options: RunOptions, plan: Plan) -> dict[str, Any]:
    return {
        "arrivals": plan.arrivals.value,
        "stages": [(stage.seconds, stage.rate) for stage in plan.stages],
        "callers": plan.callers if plan.arrivals is Arrivals.CLOSED else None,
        "count_max": plan.count_max,
        "generators": options.generators,
        "workers": options.workers if options.url is None else None,
        "merchants": options.merchants,
        "warm_up_seconds": options.warm_up_seconds,
        "psp_ms": options.psp_ms,
        "items": plan.items,
        "sockets": plan.sockets,
        **shown_settings(options.settings),
    }


def _notes(options: RunOptions, plan: Plan, load: Load, *, is_settled: bool) -> list[str]:
    """Notes that a reader needs to judge the figures."""
    notes = []
    lag = load.latency_ms(99.0, "lag")
    if lag > 5:
        notes.append(f"the generators were late: p99 {lag:.1f} ms behind the schedule, which the latencies include")
    if load.not_begun:
        notes.append(f"{load.not_begun} journeys were not begun, because the generators had no room for them")
    if options.count is None and load.begun >= plan.count_max:
        notes.append(f"it ended after {plan.count_max:,} journeys, the limit without --count")
    if not is_settled:
        notes.append(f"some work had not ended {SETTLE_SECONDS:.0f} s after the load")
    return notes
