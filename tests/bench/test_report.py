"""A report says what was measured and no more: no figures that the sample does not bear, in words, whole, on a phone too."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hdrh.histogram import HdrHistogram

from bench import INSTALL
from bench.generator.plan import Second
from bench.lab.compare import compared
from bench.lab.load import Load
from bench.lab.page import render
from bench.lab.profiling import hottest
from bench.lab.results import Latency, Measurement, Moment, Report, bears, new_report, read_report, report_directory, write_report
from bench.lab.run import _moments
from server.clock import utc_now
from tests.conftest import ROOT


def measurement(subject: str, number: int, *, rate: float, count: int = 500) -> Measurement:
    """A round with latencies that its journeys bear."""
    milliseconds = {"p50": 5.0, "p90": 8.0, "p99": 10.0 + number, "max": 12.0}
    histogram = HdrHistogram(1, 3_600_000_000, 3)
    histogram.record_value(5_000, count)
    latency = Latency(count=count, milliseconds=milliseconds, histogram=histogram.encode().decode())
    return Measurement(
        scenario="sync",
        subject=subject,
        round=number,
        began_at=utc_now(),
        settings={"stages": [(10.0, 200.0), (5.0, 400.0)], "warm_up_seconds": 4.0, "generators": 1, "arrivals": "poisson"},
        seconds=10.3,
        begun=count,
        not_begun=0,
        ended={"ok": count, "503": 2},
        told=0,
        payments=count,
        rate=rate,
        offered=rate + 1,
        latencies={"ok": latency},
        series=[],
        cpu_us={"worker": 400.0 / rate},
        peak_bytes={},
        group_items=1.0,
        broken_promises=[],
        verdicts=[],
        notes=[],
    )


def report(*measurements: Measurement) -> Report:
    """A report of this machine."""
    made = new_report("florin bench sync", list(measurements), {}, postgres="15")
    return msgspec.structs.replace(made, comparisons=compared(made))


def test_a_percentile_needs_a_value_above_it() -> None:
    assert [bears(count, 99.0) for count in (10, 99, 100)] == [False, False, True]
    assert [bears(count, 99.9) for count in (500, 1_000)] == [False, True]
    assert bears(1, 100.0)
    few = Latency(count=40, milliseconds={"p50": 1.0, "p99": 2.0, "max": 2.0}, histogram="")
    assert (few.at("p50"), few.at("p99"), few.at("max")) == (1.0, None, 2.0)


def test_the_last_second_is_whole_or_left_out() -> None:
    seconds = [
        Second(number=number, begun=5, ended={"ok": 5}, in_flight=0, latencies_us=[1_000] * 5, max_us=1_000, told=0)
        for number in (1, 2, 3)
    ]
    assert [one.second for one in _moments(Load(seconds=2.4, series=seconds), [], 0.0)] == [1, 2]
    assert [one.second for one in _moments(Load(seconds=2.98, series=seconds), [], 0.0)] == [1, 2, 3]
    assert [one.second for one in _moments(Load(seconds=0.4, series=seconds[:1]), [], 0.0)] == [1]
    assert [one.p99_ms for one in _moments(Load(seconds=3.0, series=seconds), [], 0.0)] == [None] * 3


def test_a_comparison_is_kept_and_shown_with_its_confidence(tmp_path: Path) -> None:
    rounds = [
        measurement(name, number, rate=rate + number) for number in (1, 2, 3) for name, rate in (("a", 100.0), ("b", 200.0))
    ]
    made = report(*rounds)
    path = tmp_path / "report.json"
    write_report(made, path)
    (found,) = read_report(path).comparisons
    assert (found.a, found.b) == ("a", "b")
    rate = next(one for one in found.ratios if one.what == "payments/s")
    assert 1.9 < rate.low < rate.middle < rate.high < 2.1
    page = render(made)
    assert "95 % interval" in page
    assert f"{rate.low:.3f} to {rate.high:.3f}" in page
    assert not report(*rounds[:2]).comparisons, "two rounds do not tell"


def test_a_page_has_words_and_no_reprs() -> None:
    page = render(report(measurement("florin", 1, rate=99.0, count=40)))
    assert "200 per second for 10 s, then 400 per second for 5 s" in page
    assert not re.search(r"[\[{(]['\"(]|None|Decimal|datetime", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    assert "<th>offered/s</th>" in page
    assert ">100</td>" in page
    assert '<span class="ok">40 × ok</span>' in page
    assert "<td>–</td>" in page, "p99 of 40 journeys"
    assert "width=device-width" in page
    assert page.count('class="wide"') >= 2


def test_names_of_functions_are_whole() -> None:
    stacks = Counter({("main (a.py:1)", "work (b/c.py:12)"): 3, ("std::vector<int>::push_back",): 1, ("x:y",): 1})
    assert {name for name, _ in hottest(stacks, 5)} == {"work (b/c.py)", "std::vector<int>::push_back", "x:y"}


def test_a_run_that_fails_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), report_directory(tmp_path / "bench-results" / "x"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with report_directory(tmp_path / "bench-results" / "x") as place:
        (place / "report.json").write_text("{}")
    assert (tmp_path / "bench-results" / "x" / "report.json").exists()


def test_help_works_without_the_laboratorys_packages(tmp_path: Path) -> None:
    (tmp_path / "hdrh").mkdir()
    (tmp_path / "hdrh" / "__init__.py").write_text("raise ModuleNotFoundError('hidden', name='hdrh')")
    code = (
        "import importlib.util, sys\n"
        "known = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name.startswith('hdrh') else known(name, *more)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.argv = ['florin', 'bench', *sys.argv[1:]]\n"
        "from server.cli import main\n"
        "main()\n"
    )

    def said(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-P", "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env={**os.environ}, timeout=60)
        return done.returncode, done.stdout + done.stderr

    code_of_help, help_text = said("--help")
    assert code_of_help == 0, help_text
    assert "compare" in help_text
    assert said("sync", "--help")[0] == 0
    failed, why = said("sync")
    assert failed == 1
    assert INSTALL in why
    assert not list(tmp_path.glob("bench-results"))


def test_no_hint_leads_to_a_strangers_package() -> None:
    """`florin` on PyPI is somebody else's."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {name: (ROOT / name).read_text() for name in listed if name.endswith((".py", ".md", ".toml", ".html", "run"))}
    wrong = [name for name, text in texts.items() if re.search(r"pip3? install [^\n]*['\" ]florin(\[|['\" \n])", text)]
    assert [name for name in wrong if not name.startswith(("tests/", "server/decisions/"))] == []


def test_moments_of_old_reports_are_read() -> None:
    old = b'{"second":1,"begun":1,"ok":1,"failed":0,"in_flight":0,"told":0,"p50_ms":1.0,"p99_ms":1.0,"max_ms":1.0}'
    assert msgspec.json.decode(old, type=Moment).p99_ms == 1.0
