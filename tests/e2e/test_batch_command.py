"""`florin batch run` from outside: files of every kind, exit codes, Ctrl-C, deadlines, and resuming."""

import csv
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from core.errors import FlorinError
from server.cli import app
from server.cli.batch.files import BadFile, read_rows
from tests.support.command import FLORIN, Up, here, started, up

pytestmark = pytest.mark.slow

HEADING = "order_id,amount,currency,token"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One instance for all tests."""
    with up("--ephemeral", "--workers", "1") as one:
        yield one


def batch(running: Up, *arguments: str | Path, code: int = 0) -> str:
    """Run `florin batch run` and return its output."""
    where = ("--api-url", running.value("API"), "--api-key", running.value("API key"))
    result = CliRunner().invoke(app, ["batch", "run", *where, *map(str, arguments)])
    ended = result.exception
    said = result.output + (str(ended) if isinstance(ended, FlorinError) else "")
    assert result.exit_code == code, (said, ended)
    return said


def rows(count: int, *, name: str = "order", token: str = "tok_paid") -> str:
    """A file of charges."""
    return "\n".join([HEADING, *(f"{name}-{number},1000,EUR,{token}" for number in range(count))]) + "\n"


def results(path: Path) -> list[dict[str, str]]:
    """The results that were written."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def psp(running: Up, **wanted: Any) -> None:
    """Set a fault of the sandbox PSP."""
    httpx2.post(f"{running.value('sandbox PSP')}/control", json=wanted).raise_for_status()


def test_exit_codes_and_results(running: Up, tmp_path: Path) -> None:
    file, out = tmp_path / "payments.csv", tmp_path / "results.csv"
    file.write_text(rows(3, name="settled"))
    assert "3 SUCCEEDED; results in" in batch(running, file, "--out", out)
    assert [(one["line"], one["order_id"], one["status"], one["success"]) for one in results(out)] == [
        ("2", "settled-0", "SUCCEEDED", "1"),
        ("3", "settled-1", "SUCCEEDED", "1"),
        ("4", "settled-2", "SUCCEEDED", "1"),
    ]
    assert not list(tmp_path.glob("*.batch.json"))
    assert "everything is charged AGAIN" in batch(running, file, "--out", out, code=1)
    file.write_text(rows(1, name="x") + "declined,500,EUR,tok_declined\n")
    assert "1 DECLINED, 1 SUCCEEDED" in batch(running, file, "--out", out, "--again", code=3)
    assert (results(out)[1]["code"], results(out)[1]["did_check_again"]) == ("card_declined", "1")
    paid = results(out)[0]["payment_id"]
    lines = [{"type": "verify", "payment_id": paid}, {"type": "refund", "payment_id": paid, "amount": 10}]
    other = tmp_path / "more.ndjson"
    other.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert "2 SUCCEEDED" in batch(running, other)
    assert [one["line"] for one in results(tmp_path / "more.ndjson.results.csv")] == ["1", "2"]


def test_files_as_people_have_them(running: Up, tmp_path: Path) -> None:
    file = tmp_path / "odd.csv"
    text = (
        '\ufeff"Order_ID";amount;Currency;token;description;metadata.shop\r\n'
        '"A;1";1000;EUR;tok_paid;"two\r\nlines, ""quoted""";Köln\r\n'
        ";;;;;\r\n"
        "B-2;1000;EUR;tok_paid;;\r\n"
    )
    file.write_bytes(text.encode())
    assert "2 SUCCEEDED" in batch(running, file)
    assert [(one["line"], one["order_id"]) for one in results(tmp_path / "odd.csv.results.csv")] == [("2", "A;1"), ("5", "B-2")]

    file.write_text(HEADING + "\n")
    assert "has no rows: nothing to do" in batch(running, file, "--out", tmp_path / "none.csv")
    assert results(tmp_path / "none.csv") == []

    file.write_text(rows(2, name="twice") + rows(1, name="twice").partition("\n")[2])
    said = batch(running, file, "--out", tmp_path / "no.csv", code=1)
    assert "odd.csv, line 4: order_id: line 2 has the same order" in said
    assert not (tmp_path / "no.csv").exists()

    file.write_text(rows(1, name="long") + f"{'x' * 1_000_000},1000,EUR,tok_paid\n" + "y,19.99,EUR,t\n")
    said = batch(running, file, "--out", tmp_path / "no.csv", code=1)
    assert "2 lines are invalid" in said
    assert "line 3: order_id: Expected `str` of length <= 255" in said
    assert "line 4: amount: expected an integer number of minor units, 1999 for 19.99, instead of '19.99'" in said
    assert not list(tmp_path.glob("no.csv*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b"order,amount,Betrag\n", "unknown column 'order': did you mean order_id?"),
        (b"PK\x03\x04", "is a workbook"),
        (b"amount,amount\n", "a column name is repeated"),
        (b"order_id,amount\na,1,2\n", "line 2: this line has 3 cells"),
        (b'order_id,amount\n"a,1\n', "line 2: unexpected end of data"),
        (b"order_id\n\xff\n", "line 2: not UTF-8"),
        (b'{"type": "charge"\n', "line 1: not JSON"),
        *(
            (b"type,payment_id,amount\n%s,pay_%s%s" % (kind, b"0" * 32, end), f"line 2: {said}")
            for kind in (b"refund", b"capture")
            for end, said in (
                (b"\n", "this line has 2 cells, the header line 3"),
                (b"", "this line has 2 cells, the header line 3"),
                (b",", "the file ends in this line's amount, without a line break: it may have been cut"),
                (b",50", "the file ends in this line's amount, without a line break: it may have been cut"),
            )
        ),
        *(
            (
                b'{"type": "refund", "payment_id": "pay_%s", %s}\n' % (b"0" * 32, twice),
                f"line 1: the name '{name}' is given twice",
            )
            for name, twice in (("amount", b'"amount": 100, "amount": 99999'), ("a", b'"metadata": {"a": "1", "a": "2"}'))
        ),
        *(
            (b'{"type": "verify"}\n{"order_id": "a", %s}\n' % deep, "line 2: ")
            for deep in (b'"metadata": ' + b"[" * 20_000, b'"metadata": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000)
        ),
        (b"order_id,amount\n" + b"a,1\n" * 10_001, "a batch has at most 10,000"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: bytes, said: str) -> None:
    file = tmp_path / "f.csv"
    file.write_bytes(text)
    with pytest.raises(BadFile, match=re.escape(said)):
        read_rows(file)


def test_metadata_is_named_as_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text("Order_ID,AMOUNT,currency,token,metadata.cartId,Metadata.SKU\na,1,EUR,tok_paid,c-1,S-1\n")
    assert read_rows(file).items[0]["metadata"] == {"cartId": "c-1", "SKU": "S-1"}


def test_a_deadline_and_going_on(running: Up, tmp_path: Path) -> None:
    file, out = tmp_path / "slow.csv", tmp_path / "out.csv"
    file.write_text(rows(6, name="slow"))
    psp(running, latency={"seconds": 0.7})
    said = batch(running, file, "--out", out, "--deadline", "1", "--concurrency", "1", code=4)
    assert "the deadline of 1 s passed" in said
    assert [one["status"] for one in results(out)] == ["SUCCEEDED", "UNKNOWN", *["NOT_STARTED"] * 4]
    assert "continue with --resume" in batch(running, file, "--out", out, code=1)
    psp(running, latency=None)
    changed = tmp_path / "changed.csv"
    changed.write_text(rows(1, name="other"))
    assert "the file has changed" in batch(running, changed, "--out", out, "--resume", code=1)
    said = batch(running, file, "--out", out, "--resume", "--api-key", "fl_test_x", code=1)
    assert "another merchant's API key" in said
    assert "6 SUCCEEDED" in batch(running, file, "--out", out, "--resume")
    assert {one["status"] for one in results(out)} == {"SUCCEEDED"}
    assert "there is nothing to resume" in batch(running, file, "--out", out, "--resume", code=1)


def test_a_run_stopped_by_ctrl_c_can_be_resumed(running: Up, tmp_path: Path) -> None:
    file, out = tmp_path / "stop.csv", tmp_path / "out.csv"
    file.write_text(rows(40, name="stop"))
    psp(running, latency={"seconds": 0.3})
    where = ("--api-url", running.value("API"), "--api-key", running.value("API key"))
    command = [FLORIN, "batch", "run", str(file), "--out", str(out), "--concurrency", "2", *where]
    state = tmp_path / "out.csv.batch.json"
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not state.exists() or b"bat_" not in state.read_bytes():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.communicate()[0]
    assert process.returncode == 130, said
    assert "can be resumed: the same command with --resume" in said
    assert "UNKNOWN" not in {one["status"] for one in results(out)}, "what was under way came to its end"
    psp(running, latency=None)
    assert "40 SUCCEEDED" in batch(running, file, "--out", out, "--resume")


def test_a_run_that_cannot_start_says_why(running: Up, tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text(rows(1))
    said = here("batch", "run", str(file), "--api-url", "http://127.0.0.1:9", "--api-key", "k", code=1)
    assert "cannot be reached" in said
    said = here("batch", "run", str(file), "--api-url", running.value("API"), "--api-key", "fl_test_x", code=1)
    assert "not a Florin API key" in said
    assert not list(tmp_path.glob("*.json")), "nothing was begun, so nothing is to be resumed"
    assert "cannot read" in batch(running, tmp_path / "missing.csv", code=1)
    assert "choose another" in batch(running, file, "--out", file, code=1)
    assert "there is no directory" in batch(running, file, "--out", tmp_path / "no" / "x.csv", code=1)


def test_batches_are_shown_and_stopped(running: Up, tmp_path: Path) -> None:
    file = tmp_path / "shown.csv"
    file.write_text(rows(2, name="shown"))
    name = re.findall(r"bat_\w+", batch(running, file))[0]
    where = ("--api-url", running.value("API"), "--api-key", running.value("API key"))
    assert name in here("batch", "list", *where)
    for verb in ("show", "stop"):
        assert f"{name} is COMPLETED: 2 SUCCEEDED" in here("batch", verb, name, *where)
    assert "no such batch" in here("batch", "show", "bat_" + "0" * 32, *where, code=1)
    assert "expected an identifier like bat_" in here("batch", "show", "x", *where, code=1)


def test_texts_with_other_line_separators(running: Up, tmp_path: Path) -> None:
    file = tmp_path / "odd.csv"
    file.write_text(f"{HEADING}\nls-1\u2028x\x85y,1000,EUR,tok_paid\n")
    assert "1 SUCCEEDED" in batch(running, file)


def test_a_run_with_an_unknown_start_is_resumed_under_its_key(running: Up, tmp_path: Path) -> None:
    """The command was killed between its request and the first line of the reply."""
    file, out = tmp_path / "lost.csv", tmp_path / "out.csv"
    file.write_text(rows(3, name="lost"))
    psp(running, latency={"seconds": 0.7})
    batch(running, file, "--out", out, "--deadline", "1", "--concurrency", "1", code=4)
    state_path = tmp_path / "out.csv.batch.json"
    state = json.loads(state_path.read_text())
    began = state["batch_id"]
    state_path.write_text(json.dumps({**state, "batch_id": None}))
    psp(running, latency=None)
    for wrong in (("--api-url", "http://127.0.0.1:9"), ("--api-key", "fl_test_" + "0" * 32)):
        batch(running, file, "--out", out, "--resume", *wrong, code=1)
        assert state_path.exists(), "what may have been begun is never forgotten"
    assert "3 SUCCEEDED" in batch(running, file, "--out", out, "--resume")
    with httpx2.Client(headers={"authorization": f"Bearer {running.value('API key')}"}) as http:
        newest = http.get(f"{running.value('API')}/v1/batches?limit=1").json()["data"][0]
    assert (newest["id"], newest["run"]) == (began, 2)


def test_a_failed_resumption_keeps_known_results(running: Up, tmp_path: Path) -> None:
    file, out = tmp_path / "kept.csv", tmp_path / "out.csv"
    file.write_text(rows(3, name="kept"))
    psp(running, latency={"seconds": 0.7})
    batch(running, file, "--out", out, "--deadline", "1", "--concurrency", "1", code=4)
    before = results(out)[0]
    assert before["status"] == "SUCCEEDED"
    said = batch(running, file, "--out", out, "--resume", "--api-url", "http://127.0.0.1:9", code=1)
    assert "cannot be reached" in said
    assert results(out)[0] == before
    assert [one["status"] for one in results(out)[1:]] == ["UNKNOWN", "NOT_KNOWN"]
    psp(running, latency=None)
    assert "3 SUCCEEDED" in batch(running, file, "--out", out, "--resume")
    (tmp_path / "out.csv.batch.json").write_text("x")
    assert "cannot be read" in batch(running, file, "--out", out, "--resume", code=1)


def test_results_of_an_earlier_run_are_kept_apart(running: Up, tmp_path: Path) -> None:
    """The command was killed while running a file again."""
    file, out = tmp_path / "again.csv", tmp_path / "out.csv"
    file.write_text(rows(12, name="again"))
    batch(running, file, "--out", out)
    first = {one["payment_id"] for one in results(out)}
    psp(running, latency={"seconds": 0.4})
    where = ("--api-url", running.value("API"), "--api-key", running.value("API key"))
    command = [FLORIN, "batch", "run", str(file), "--out", str(out), "--again", "--concurrency", "1", *where]
    state = tmp_path / "out.csv.batch.json"
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not state.exists() or b"bat_" not in state.read_bytes():
            assert process.poll() is None
        process.kill()
    psp(running, latency=None)
    assert "12 SUCCEEDED" in batch(running, file, "--out", out, "--resume")
    assert not first & {one["payment_id"] for one in results(out)}
    assert {one["payment_id"] for one in results(tmp_path / "out.csv.earlier")} == first


class _Proxy(BaseHTTPRequestHandler):
    """Takes the request and does not answer."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("status", [404, 409, 504])
def test_an_answer_that_proves_nothing_keeps_the_key(tmp_path: Path, status: int) -> None:
    file = tmp_path / "f.csv"
    file.write_text(rows(1, name="proxy"))
    with HTTPServer(("127.0.0.1", 0), _Proxy) as server:
        server.status = status  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        command = [
            FLORIN,
            "batch",
            "run",
            str(file),
            "--api-url",
            f"http://127.0.0.1:{server.server_port}",
            "--api-key",
            "fl_test_x",
        ]
        kept = tmp_path / "f.csv.results.csv.batch.json"
        with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            give_up_at = time.monotonic() + 60
            while not kept.exists():  # it is written before the request is sent
                assert time.monotonic() < give_up_at
                time.sleep(0.05)
            with suppress(subprocess.TimeoutExpired):
                process.wait(4)  # its answer must not make the command forget the key
        server.shutdown()
        thread.join()
    assert kept.exists()


def test_a_resumption_that_is_killed_is_resumed(running: Up, tmp_path: Path) -> None:
    file, out = tmp_path / "twice.csv", tmp_path / "out.csv"
    file.write_text(rows(8, name="twice"))
    psp(running, latency={"seconds": 0.7})
    batch(running, file, "--out", out, "--deadline", "1", "--concurrency", "3", code=4)
    assert "UNKNOWN" in {one["status"] for one in results(out)}
    where = ("--api-url", running.value("API"), "--api-key", running.value("API key"))
    command = [FLORIN, "batch", "run", str(file), "--out", str(out), "--resume", "--concurrency", "1", *where]
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(4)
        process.kill()
    psp(running, latency=None)
    assert "8 SUCCEEDED" in batch(running, file, "--out", out, "--resume")
    assert len({one["payment_id"] for one in results(out)}) == 8
