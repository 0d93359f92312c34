"""Output on terminals and in pipes: texts of others do nothing, identifiers are whole, failures are lines, help fits."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from server.cli import COMMANDS
from server.cli.output import json_shown, shown
from tests.conftest import make_reachable_directory
from tests.support.command import FLORIN, Up, here, log_in, on_a_terminal, run, started, up

pytestmark = pytest.mark.slow

NASTY = "a:key:b [bold]x[/] \x1b[2J\x07\r\n\x9b31m\u202eevil\u2066 ready"
HARMLESS = "a:key:b [bold]x[/] \\x1b[2J\\x07\\r\\n\\x9b31m\\u202eevil\\u2066 ready"
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Up, tuple[str, str]]]:
    """One instance for all tests, and the flag that names it."""
    directory = make_reachable_directory()
    with up("--data-dir", str(directory / "data"), "--workers", "1") as one:
        yield one, ("--data-dir", str(directory / "data"))
    shutil.rmtree(directory, ignore_errors=True)


def charge(instance: Up, order_id: str) -> str:
    headers = {"authorization": f"Bearer {instance.value('API key')}", "idempotency-key": os.urandom(8).hex()}
    body = {"amount": 1990, "currency": "EUR", "order_id": order_id, "confirm": True, "token": "tok_paid"}
    made = httpx2.post(f"{instance.value('API')}/v1/payments", json=body, headers=headers)
    assert made.status_code == 201, made.text
    name: str = made.json()["id"]
    return name


def test_texts_of_others_are_shown_as_they_are() -> None:
    assert shown(NASTY) == HARMLESS
    assert shown("日本 é €") == "日本 é €"
    document = json.dumps({"a": NASTY}, ensure_ascii=False)
    assert json.loads(json_shown(document)) == {"a": NASTY}
    assert not UNSAFE.search(json_shown(document))


def test_an_order_id_does_nothing_to_a_terminal(running: tuple[Up, tuple[str, str]]) -> None:
    instance, where = running
    for form in ([], ["--json"]):
        with started([FLORIN, "listen", *where, *form], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listening:
            assert listening.stderr is not None
            assert listening.stdout is not None
            assert b"listening to" in listening.stderr.readline()
            payment = charge(instance, NASTY)
            line = listening.stdout.readline().decode()
        assert payment in line
        assert not UNSAFE.search(line.rstrip("\n"))
        if form:
            assert json.loads(line)["data"]["order_id"] == NASTY
        else:
            assert HARMLESS in line
    found = run("explain", NASTY, *where, code=1)
    assert f"{HARMLESS} names 2 payments" in found
    assert not UNSAFE.search(found)


def test_names_are_no_emojis(running: tuple[Up, tuple[str, str]]) -> None:
    _, where = running
    log_in(*where)
    run("merchant", "add", "a:key:b [red]", *where)
    assert "a:key:b [red]" in run("merchant", "list", *where)
    merchant = next(line.split()[0] for line in run("merchant", "list", *where).splitlines() if "a:key:b" in line)
    assert "a:key:b [red]" in run("merchant", "show", merchant, *where)
    assert "a:key:b [red]" in on_a_terminal([FLORIN, "merchant", "list", *where])


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_pipe_gets_whole_rows(running: tuple[Up, tuple[str, str]], monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    _, where = running
    monkeypatch.setenv("COLUMNS", columns)
    for command, name in ((["merchant", "list"], "mer_"), (["psp", "list"], "acct_")):
        lines = run(*command, *where).splitlines()[1:]
        assert lines
        assert all(re.match(rf"{name}[0-9a-f]{{32}}  ", line) for line in lines), lines


def test_a_narrow_terminal_wraps_what_is_too_long(running: tuple[Up, tuple[str, str]]) -> None:
    _, where = running
    said = on_a_terminal([FLORIN, "merchant", "list", *where], columns=40)
    assert "…" not in said
    merchant = re.findall(r"mer_\w{32}", run("merchant", "list", *where))[0]
    first = [line.split(" ")[0] for line in re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()]
    assert merchant in "".join(first)


def test_a_full_device_is_a_line(running: tuple[Up, tuple[str, str]]) -> None:
    _, where = running
    with Path("/dev/full").open("w") as full:
        for command in (["doctor", *where], ["merchant", "list", *where], ["--help"], ["haproxy"]):
            done = subprocess.run([FLORIN, *command], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
            assert done.returncode == 1, command
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
            assert "No space left on device" in done.stderr


def test_explain_takes_any_identifier(running: tuple[Up, tuple[str, str]]) -> None:
    instance, where = running
    payment = charge(instance, "order-of-its-own")
    digits = payment.removeprefix("pay_")
    headers = {"authorization": f"Bearer {instance.value('API key')}", "idempotency-key": "refund-of-its-own"}
    url = f"{instance.value('API')}/v1/payments/{payment}"
    refund = httpx2.post(f"{url}/refunds", json={"amount": 5}, headers=headers).json()["id"]
    trail = run("explain", payment, *where)
    operation = re.findall(r"op_[0-9a-f]{32}", trail)[0]
    event = re.findall(r"evt_[0-9a-f]{32}", trail)[0]
    reference = re.findall(r"si_\w+|sandbox_\w+", trail)
    names = [f"req_{digits}", digits, f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"]
    names += [refund, operation, event, "order-of-its-own", "refund-of-its-own", *reference[:1]]
    for name in names:
        said = run("explain", name, *where)
        assert said.splitlines()[0] == payment, name
        assert said.splitlines()[1:] == run("explain", payment, *where).splitlines(), name
    assert "argument 2, '\\udcff', is not UTF-8" in run("explain", "\udcff", *where, code=1)
    assert "no order, reference, event or key" in run("explain", "nothing", *where, code=1)
    assert "has left nothing here" in run("explain", "req_" + "0" * 32, *where, code=1)
    assert "expected an identifier" in run("explain", "pay_x", *where, code=1)
    assert "expected pay_" in run("explain", "bat_" + "0" * 32, *where, code=1)


def test_piped_progress_is_made_of_whole_lines(running: tuple[Up, tuple[str, str]], tmp_path: Path) -> None:
    instance, where = running
    file = tmp_path / "payments.csv"
    rows = "\n".join(f"piped-{number},1000,EUR,tok_paid" for number in range(300))
    file.write_text(f"order_id,amount,currency,token\n{rows}\n")
    environment = {**os.environ, "COLUMNS": "20"}
    command = [FLORIN, "batch", "run", str(file), *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert instance.process.poll() is None
    assert re.fullmatch(r"bat_\w{32}: 300 items, 300 s\n", done.stderr), done.stderr
    assert "300 SUCCEEDED; results in" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_name_whole_at_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "bench":
        return  # whose parser is its own; see tests/bench
    monkeypatch.setenv("COLUMNS", "80")
    said = here(name, "--help")
    commands = re.findall(r"^  ([a-z-]+)  ", said.partition("Commands:")[2], re.MULTILINE)
    for text in (said, *(here(name, one, "--help") for one in commands)):
        assert max(map(len, text.splitlines())) <= 80, text
        assert "…-" not in text
        assert "..." not in text.replace("[ARGS]...", "")
        options = text.partition("Options:")[2].partition("Commands:")[0]
        assert "--help" in options
        assert not re.search(r"--[a-z-]+…", options)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    environment = {**os.environ, "_FLORIN_COMPLETE": f"source_{shell}"}
    script = subprocess.run([FLORIN], capture_output=True, text=True, check=False, env=environment, timeout=20).stdout
    assert "florin" in script
    assert f"complete_{shell}" in script
    if shell == "bash":
        words = {
            **environment,
            "_FLORIN_COMPLETE": "complete_bash",
            "COMP_WORDS": "florin merchant set --return",
            "COMP_CWORD": "3",
        }
        done = subprocess.run([FLORIN], capture_output=True, text=True, check=False, env=words, timeout=20)
        assert done.stdout.split() == ["--return-hosts"]


def test_a_reader_that_leaves_ends_a_command_that_prints(running: tuple[Up, tuple[str, str]]) -> None:
    instance, where = running
    with started([FLORIN, "listen", *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listening:
        assert listening.stderr is not None
        assert listening.stdout is not None
        listening.stderr.readline()
        listening.stdout.close()
        ended = threading.Event()
        deadline = time.monotonic() + 20
        while listening.poll() is None and time.monotonic() < deadline:
            charge(instance, "unread")
            ended.wait(0.2)
        assert listening.poll() == 1
        assert b"Traceback" not in listening.stderr.read()
