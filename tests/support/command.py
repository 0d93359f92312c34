"""The command `florin` as a person runs it: a process with output."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner

from core.errors import leaves
from server.cli import app

FLORIN = str(Path(sys.executable).with_name("florin"))
START_SECONDS = 60.0
STOP_SECONDS = 10.0


@dataclass
class Up:
    """A running `florin up`."""

    process: subprocess.Popen[str]
    lines: list[str]

    def value(self, name: str) -> str:
        """The value on the screen behind a label."""
        line = next(line for line in self.lines if line.startswith(name))
        return line.removeprefix(name).split()[0]

    def process_tree(self) -> list[psutil.Process]:
        """Everything it has started."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def end(self, sign: signal.Signals) -> tuple[float, list[psutil.Process]]:
        """Send a signal. Returns how long everything took to end, and what was still running after `STOP_SECONDS`."""
        process_tree = self.process_tree()
        began = time.monotonic()
        self.process.send_signal(sign)
        _, left = psutil.wait_procs([psutil.Process(self.process.pid), *process_tree], timeout=STOP_SECONDS, callback=self._reap)
        return time.monotonic() - began, left

    def _reap(self, process: psutil.Process) -> None:
        if process.pid == self.process.pid:
            self.process.wait()


def owner_url(directory: Path) -> str:
    """The address of the superuser of a running instance's embedded PostgreSQL, which Florin itself shows to nobody."""
    url = json.loads((directory / "running.json").read_text())["database_url"]
    password = (directory / "postgres-password").read_text().strip()
    return f"postgresql://florin:{password}@{url.partition('@')[2]}"


@contextmanager
def up(*arguments: str, home: Path | None = None) -> Iterator[Up]:
    """`florin up` on free ports, ready; stopped at the end of the block at the latest."""
    environment = {**os.environ, **({"HOME": str(home)} if home else {})}
    ports = ["--port", "0", "--psp-port", "0", "--shop-port", "0"]
    process = subprocess.Popen([FLORIN, "up", *ports, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if lines[-1] == "ready":
                break
        assert lines[-1] == "ready", lines
        yield Up(process, lines)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that does not outlive the block, however the block ends: `Popen` by itself would wait for it forever."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def on_a_terminal(command: Sequence[str], *, answers: Sequence[str] = (), columns: int = 80) -> str:
    """Run a command on a terminal of its own, of so many columns, and type the answers. Returns all that was printed."""
    pid, screen = pty.fork()
    if pid == 0:
        time.sleep(0.1)  # until the size is set
        os.environ.pop("COLUMNS", None)
        os.execv(command[0], list(command))
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    said = b""
    left = list(answers)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        readable, _, _ = select.select([screen], [], [], 0.3)
        if readable:
            try:
                part = os.read(screen, 65_536)
            except OSError:
                break
            said += part
        elif left:
            os.write(screen, left.pop(0).encode() + b"\n")
    os.waitpid(pid, 0)
    os.close(screen)
    return said.decode()


def log_in(*where: str, name: str = "ada") -> None:
    """Log a demo operator in."""
    assert f"{name}, " in run("operator", "login", name, *where)


def run(*arguments: str, code: int = 0) -> str:
    """Run a command to its end, which must have exit code `code`. Returns the output of both streams."""
    done = subprocess.run([FLORIN, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def here(*arguments: str, code: int = 0) -> str:
    """Run a command within this process, which saves its start. Returns its output, or its error."""
    result = CliRunner().invoke(app, arguments)
    failed = result.exit_code != 0
    assert failed == (code != 0), (result.output, result.exception)
    ended = result.exception
    errors = leaves(ended) if isinstance(ended, BaseExceptionGroup) else [ended]
    return result.output + ("; ".join(map(str, errors)) if failed else "")
