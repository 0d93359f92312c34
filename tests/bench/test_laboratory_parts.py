"""The parts of the laboratory that figures depend on: schedules, confidence intervals, corrected latencies, refused options."""

import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bench.generator.arrivals import Arrivals, Stage, intended_starts, spike, steps
from bench.generator.http import Served, listen
from bench.generator.loop import Loop
from bench.generator.plan import Plan
from bench.lab.charts import bars, lines
from bench.lab.compare import compare, ratio
from bench.lab.load import Load, free_socket, offer, open_generators
from bench.lab.options import BenchError, command_line, require_loopback
from bench.lab.profiling import REST, flame_graph, part_of, parts, read_stacks
from bench.lab.results import Report, ReportError, read_report


@given(st.integers(1, 5), st.floats(1, 500), st.floats(0.5, 5))
def test_constant_parts_are_constant_together(parts: int, rate: float, seconds: float) -> None:
    starts = sorted(
        at
        for part in range(parts)
        for at in intended_starts([Stage(seconds, rate)], kind=Arrivals.CONSTANT, rng=random.Random(1), part=part, parts=parts)
    )
    assert abs(len(starts) - rate * seconds) <= 1 + 1e-6
    assert all(math.isclose(after - before, 1 / rate, abs_tol=1e-9) for before, after in pairwise(starts))


def test_poisson_arrivals_have_their_rate_and_are_not_even() -> None:
    starts = list(intended_starts([Stage(100, 50)], kind=Arrivals.POISSON, rng=random.Random(7)))
    gaps = [after - before for before, after in pairwise(starts)]
    assert 4_700 < len(starts) < 5_300
    assert starts == sorted(starts)
    assert 0.9 < (sum(gap**2 for gap in gaps) / len(gaps)) ** 0.5 / (2**0.5 / 50) < 1.1  # an exponential's second moment


def test_a_spike_is_a_spike() -> None:
    stages = spike(10, factor=10, before_seconds=5, seconds=5, after_seconds=5)
    starts = list(intended_starts(stages, kind=Arrivals.CONSTANT, rng=random.Random(1)))
    assert [sum(low <= at < low + 5 for at in starts) for low in (0, 5, 10)] == [50, 500, 50]


def test_steps_follow_each_other() -> None:
    starts = list(intended_starts(steps([10, 20, 40], seconds=2), kind=Arrivals.CONSTANT, rng=random.Random(1)))
    assert [sum(low <= at < low + 2 for at in starts) for low in (0, 2, 4)] == [20, 40, 80]


@given(st.floats(0.2, 5), st.integers(3, 12))
def test_a_ratio_that_is_always_the_same_is_certain(factor: float, rounds: int) -> None:
    values = [100.0 + number for number in range(rounds)]
    found = ratio("x", values, [value * factor for value in values])
    assert math.isclose(found.middle, factor, rel_tol=1e-6)
    assert found.low <= found.middle <= found.high
    assert math.isclose(found.low, found.high, rel_tol=1e-3)


def test_noise_is_no_difference() -> None:
    found = ratio("x", [100, 110, 90, 105, 95], [95, 105, 110, 90, 100])
    assert not found.is_certain
    assert ratio("x", [100, 101, 99, 100], [200, 201, 199, 202]).is_certain


def test_two_rounds_are_too_few() -> None:
    with pytest.raises(ReportError, match="--rounds 3"):
        compare([], [])


@pytest.mark.parametrize("url", ["http://10.0.0.1:8080", "http://shop.example", "http://192.168.1.1", "http://[::2]"])
def test_load_stays_at_home(url: str) -> None:
    with pytest.raises(BenchError, match="--allow-remote"):
        require_loopback(url, allow_remote=False)
    require_loopback(url, allow_remote=True)


@pytest.mark.parametrize(
    "url", ["nonsense", "http://", "https://127.0.0.1", "http://u:p@127.0.0.1", "http://127.0.0.1:99999", "http://[::1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BenchError, match="like http://127"):
        require_loopback(url, allow_remote=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:1", "http://127.9.9.9"])
def test_home_may_be_loaded(url: str) -> None:
    require_loopback(url, allow_remote=False)


def test_a_report_shows_no_secrets() -> None:
    given = [
        "bench",
        "sync",
        "--key",
        "fl_test_1",
        "--key=fl_test_2",
        "--set",
        "FLORIN_METRICS_TOKEN=abc",
        "--set",
        "FLORIN_POOL_SIZE=5",
    ]
    shown = command_line(given)
    assert shown == "florin bench sync --key … --key=… --set FLORIN_METRICS_TOKEN=… --set FLORIN_POOL_SIZE=5"


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ReportError, match="is not a report"):
        read_report(path)
    path.write_text('{"format": 1}')
    with pytest.raises(ReportError, match="is not a report"):
        read_report(path)
    assert Report.__doc__


def test_a_sample_belongs_to_the_part_nearest_to_the_leaf(tmp_path: Path) -> None:
    serve = (
        "run (trio/_core/_run.py:1)",
        "_call (server/http/server/connection.py:2)",
        "create (server/flows/payments/create.py:3)",
    )
    assert part_of([*serve, "apply (core/transition.py:1)", "replace (core/payment.py:2)"]) == REST
    assert (
        part_of([*serve, "call (server/psp/transport.py:1)", "request (server/http/client/client.py:2)", "wait (trio/x.py:1)"])
        == "PSP call"
    )
    assert part_of([*serve, "submit (server/db/group_commit.py:1)"]) == "commits"
    assert part_of(serve[:2]) == "HTTP in"
    deliver = (
        "_attempt (server/jobs/webhooks/parallel.py:1)",
        "attempt (server/flows/webhooks/send.py:2)",
        "request (server/http/client/client.py:3)",
    )
    assert part_of(deliver) == "notification"
    path = tmp_path / "stacks"
    path.write_text(f"{';'.join(serve)} 3\n{';'.join(deliver)} 1\n")
    stacks = read_stacks("worker", path)
    assert parts(stacks, worker_us=400)["notification"] == 100
    assert sum(parts(stacks, worker_us=400).values()) == 400
    assert "75.0%" in flame_graph(stacks, title="a < b")


def test_plots_say_when_there_is_nothing_and_escape_names() -> None:
    assert "nothing was measured" in lines({"a": [(1.0, math.nan)]}, x="x", y="y")
    drawn = lines({"<a>": [(50.0, 1.0), (99.9, 20.0)]}, x="percentile", y="ms", has_log_x=True)
    assert "&lt;a&gt;" in drawn
    assert "99.9" in drawn
    assert "1,234" in bars({"florin": {"worker": 1_000.0, "PostgreSQL": 234.0}}, y="µs")


@contextmanager
def stalling_server(*, after: int, seconds: float) -> Iterator[str]:
    """A server that answers at once, except for one stall."""
    loop, answered = Loop(), 0

    def answer(served: Served, _method: bytes, _target: bytes, _body: bytes) -> None:
        nonlocal answered
        answered += 1
        if answered == after:
            time.sleep(seconds)
        served.reply(200, b"{}")

    with free_socket() as listening:
        listen(loop, listening, answer)
        thread = threading.Thread(target=loop.run, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            loop.call_at(0, loop.stop)
            with free_socket() as nobody:
                loop.watch(nobody.fileno(), lambda _: None)


def _hello(url: str, *, arrivals: Arrivals, rate: float) -> Plan:
    return Plan(
        scenario="hello",
        url=url,
        psp_url=None,
        keys=[],
        arrivals=arrivals,
        stages=[Stage(2.0, rate)],
        callers=1,
        count_max=100_000,
        begin_at=0.0,
        connections_max=1,
    )


async def _offered(plan: Plan) -> Load:
    async with open_generators(1) as generators:
        return await offer(generators, plan, [["key"]])


async def test_an_open_loop_counts_requests_due_during_a_stall() -> None:
    """The server stalls for half a second, which a quarter of the customers of two seconds notice."""
    with stalling_server(after=50, seconds=0.5) as url:
        load = await _offered(_hello(url, arrivals=Arrivals.CONSTANT, rate=100))
    assert load.ended == {"ok": load.begun}
    assert 195 <= load.begun <= 201
    assert load.latency_ms(100) > 450
    assert load.latency_ms(90) > 150, "coordinated omission"
    assert load.latency_ms(50) < 100
    assert load.latency_ms(99, "lag") < 200
    assert sum(one.ended.get("ok", 0) for one in load.series) == load.begun


async def test_a_closed_loop_asks_a_stalled_server_less() -> None:
    with stalling_server(after=50, seconds=0.5) as url:
        load = await _offered(_hello(url, arrivals=Arrivals.CLOSED, rate=0))
    assert load.latency_ms(100) > 450
    assert load.latency_ms(99) < 100, "only one request has noticed"


async def test_a_journey_that_is_given_up_leaves_nothing_behind() -> None:
    """A server that stalls for longer than the timeout: its connection is closed, and the next journey gets its own answer."""
    with stalling_server(after=10, seconds=2.5) as url:
        plan = msgspec.structs.replace(
            _hello(url, arrivals=Arrivals.CONSTANT, rate=10), timeout_seconds=1.0, stages=[Stage(4.0, 10)]
        )
        load = await _offered(plan)
    assert load.ended["timeout"] >= 10
    assert load.ended["ok"] >= 10
    assert set(load.ended) == {"ok", "timeout"}
    assert load.latency_ms(100) < 1_500


async def test_a_server_that_is_not_there_is_counted_and_not_waited_for() -> None:
    with free_socket() as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with trio.fail_after(20):
        load = await _offered(_hello(url, arrivals=Arrivals.CONSTANT, rate=20))
    assert set(load.ended) == {"lost"}
    assert load.succeeded == 0


async def test_generators_share_the_load() -> None:
    with stalling_server(after=-1, seconds=0) as url:
        async with open_generators(2) as generators:
            load = await offer(generators, _hello(url, arrivals=Arrivals.CONSTANT, rate=100), [["a"], ["b"]])
    assert load.ended == {"ok": load.begun}
    assert 198 <= load.begun <= 201
    assert sum(one.begun for one in load.series) == load.begun
