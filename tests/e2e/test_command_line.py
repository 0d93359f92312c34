"""The command line itself: imports, errors for missing things, and readers of its output."""

import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from core.events import EVENT_TYPES
from server.cli import COMMANDS, load
from server.cli.events.trigger import WAYS
from tests.support.command import FLORIN, run, up

pytestmark = pytest.mark.slow


def test_clear_words_where_something_is_missing(directory: Path) -> None:
    nowhere = ("--data-dir", str(directory))
    for command, code in (("doctor", 2), ("smoke", 1), ("migrate", 1)):
        assert "start one with `florin up`" in run(command, *nowhere, code=code)
    assert "cannot connect" in run("doctor", "--database-url", "postgresql://127.0.0.1:9/x", code=2)
    for nonsense in ("nonsense", "mysql://x", "postgresql://u@a..b/x"):
        assert "florin:" in run("migrate", "--database-url", nonsense, code=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "Choose another one with --port" in run("up", *nowhere, "--port", port, code=1)
    (directory / "file").write_text("")
    assert "Choose another one with --data-dir" in run("up", "--data-dir", str(directory / "file"), "--port", "0", code=1)
    assert "florin " in run("--version")
    assert "not a port" in run("up", *nowhere, "--port", "65535", "--workers", "2", "--port-per-worker", code=1)
    assert "--host" in run("up", *nowhere, "--host", "nosuchhost.invalid", "--port", "0", code=1)
    for mistake in (["frobnicate"], ["up", "--workers", "0"], ["up", "--port", "x"]):
        run(*mistake, code=2)


def test_the_current_directory_cannot_stand_in_for_our_modules(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "trio.py").write_text("raise SystemExit('not ours')")
    (directory / "server").mkdir()
    monkeypatch.chdir(directory)
    with up("--data-dir", str(directory / "it's, a \\ data directory"), "--workers", "1") as running:
        assert httpx2.get(f"{running.value('API')}/healthz").status_code == 200


def test_a_closed_pipe_is_not_an_error(directory: Path) -> None:
    arguments = f"{FLORIN} up --data-dir {directory} --port 0 --psp-port 0 --shop-port 0 --workers 1"
    done = subprocess.run(["bash", "-c", f"{arguments} | head -1"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("starting")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_each_commands_own_help(name: str) -> None:
    said = " ".join((load(name).help or "").split())
    assert said.startswith(COMMANDS[name].summary), said


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_import_no_command(option: str) -> None:
    """Commands are imported when they run; their imports take a second."""
    code = (
        "import sys; sys.argv = ['florin', sys.argv[1]]\n"
        "from server.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'trio', 'psycopg', 'cryptography', 'httptools', 'server.settings'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, option], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]"), done.stdout


def test_events_can_be_triggered() -> None:
    """All but those that take minutes or days to come about, or an operator or a batch."""
    slow = {"payment.authorization_expiring", "payment.outcome_unknown", "webhook_endpoint.disabled", "api_key.expiring"}
    of_others = {one for one in EVENT_TYPES if one.startswith(("payout.", "batch.", "adjustment."))}
    assert set(WAYS) == set(EVENT_TYPES) - slow - of_others
