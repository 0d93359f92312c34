"""The laboratory from outside: commands, reports, peers, comparisons, and the budgets that it checks."""

import os
import subprocess
from pathlib import Path

import pytest

from bench.lab.profile_run import profile_scenario
from bench.lab.profiling import ALARMS
from bench.lab.results import read_report
from tests.support.command import FLORIN

pytestmark = pytest.mark.slow

SECONDS = 110


def bench(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `florin bench`."""
    environment = {**os.environ, **({"PATH": path} if path is not None else {})}
    command = [FLORIN, "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False)


def test_a_run_leaves_a_complete_report(tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = bench("sync", "--count", "300", "--callers", "16", "--warm-up", "1", "--merchants", "4", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "all promises are kept" in done.stdout
    report = read_report(out / "report.json")
    found = report.measurements[0]
    assert (found.ended, found.payments, found.broken_promises) == ({"ok": 300}, 300, [])
    assert found.told == 300
    assert found.cpu_us.keys() == {"worker", "PostgreSQL", "PSP", "load"}
    assert all(value > 0 for value in found.cpu_us.values())
    assert found.latencies["ok"].count == 300
    assert found.group_items > 0
    assert report.machine.postgres
    page = (out / "report.html").read_text()
    for text in (
        "Latency by percentile",
        "CPU time of a payment",
        "fsync on",
        "Before you quote a figure",
        report.machine.processor,
    ):
        assert text in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    shown = bench("report", str(out / "report.json"))
    assert shown.returncode == 0
    assert "all promises are kept" in shown.stdout


def test_peers_keep_the_promises_too_and_a_missing_one_is_left_out(tmp_path: Path) -> None:
    """A php without the extension cannot be measured. Swoole itself is not tested here, because building it takes minutes."""
    php = tmp_path / "bin" / "php"
    php.parent.mkdir()
    php.write_text("#!/bin/sh\nexit 1\n")
    php.chmod(0o755)
    path = f"{php.parent}:{os.environ['PATH']}"
    subjects = ("--subjects", "florin,asyncio,trio,swoole", "--count", "200", "--callers", "8", "--merchants", "4")
    done = bench("sync", *subjects, "--warm-up", "1", "--out", str(tmp_path / "out"), path=path)
    assert done.returncode == 0, done.stderr
    assert "swoole was left out: php has no Swoole extension" in done.stdout
    report = read_report(tmp_path / "out" / "report.json")
    assert [one.subject for one in report.measurements] == ["florin", "asyncio", "trio"]
    for one in report.measurements:
        assert one.ended == {"ok": one.begun}, one.subject
        assert one.broken_promises == []


def test_other_scenarios_end_well(tmp_path: Path) -> None:
    """The hosted page with webhook and websocket, a batch, and websockets; the other scenarios differ from `sync` by their
    schedule.
    """
    for arguments in (
        ("checkout", "--count", "100", "--callers", "8", "--merchants", "4"),
        ("batch", "--count", "1", "--items", "50", "--psp-ms", "50"),
        ("stream", "--seconds", "2", "--sockets", "50"),
    ):
        done = bench(*arguments, "--warm-up", "1", "--out", str(tmp_path / arguments[0]))
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        report = read_report(tmp_path / arguments[0] / "report.json")
        assert set(report.measurements[0].ended) == {"ok"}
    marks = read_report(tmp_path / "checkout" / "report.json").measurements[0].latencies
    assert {"created", "paid", "ok"} <= marks.keys()


def test_bad_input_gets_one_line_of_advice(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for arguments, said in (
        (("sync", "--url", "http://10.1.2.3:8080", "--key", "fl_test_x"), "--allow-remote"),
        (("sync", "--url", "http://127.0.0.1:1"), "--key"),
        (("sync", "--url", "http://127.0.0.1:1", "--key", "fl_live_x"), "live key"),
        (("sync", "--rate", "5", "--callers", "5"), "either an open loop"),
        (("sync", "--steps", "fast"), "separated by commas"),
        (("sync", "--steps", "5,0"), "separated by commas"),
        (("sync", "--rate", "5", "--steps", "5,10"), "several rates"),
        (("spike", "--steps", "5,10"), "--rate, not --steps"),
        (("sync", "--subjects", "nginx"), "unknown subject 'nginx'"),
        (("sync", "--url", "https://127.0.0.1:1", "--key", "fl_test_x"), "--url must be like http://127.0.0.1:8080"),
        (("sync", "--url", "127.0.0.1:8080", "--key", "fl_test_x"), "--url must be like http://127.0.0.1:8080"),
        (("checkout", "--url", "http://127.0.0.1:1", "--key", "fl_test_x"), "leave out --url"),
        (("spike", "--callers", "5"), "--rate, not --callers"),
        (("sync", "--items", "5"), "--items is for `batch`"),
        (("sync", "--arrivals", "poisson"), "add --rate"),
        (("sync", "--set", "FLORIN_DATABASE_URL=postgresql://x"), "its own database"),
        (("checkout", "--subjects", "florin,asyncio"), "sync flow only"),
        (("sync", "--set", "PATH=x"), "FLORIN_NAME=VALUE"),
        (("compare", str(report), str(report)), "is not a report"),
        (("profile", "nothing"), "the scenario must be one of"),
        (("growth", "--sizes", "many"), "numbers separated by commas"),
    ):
        done = bench(*arguments, "--out", str(tmp_path / "out")) if arguments[0] != "report" else bench(*arguments)
        assert done.returncode == 1, arguments
        assert said in done.stderr.splitlines()[-1], (arguments, done.stderr)
        assert "Traceback" not in done.stderr


async def test_no_part_of_a_payment_costs_much_more(tmp_path: Path) -> None:
    """µs of each part relative to a bare request of the same run: absolute times would depend on the machine."""
    found = await profile_scenario("sync", "worker", 5.0, None, tmp_path / "flame.svg", lambda _doing, _load: None)
    costs = {part: microseconds / found.request_us for part, microseconds in found.parts.items()}
    assert costs.keys() == ALARMS.keys()
    too_dear = {part: cost for part, cost in costs.items() if cost > ALARMS[part]}
    assert not too_dear, f"in requests of {found.request_us:.0f} µs: {costs}"
    assert (tmp_path / "flame.svg").read_text().startswith("<svg")
