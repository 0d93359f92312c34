"""`python -m bench.micro.instructions`: the instructions that a worker executes for a payment, in all and by part.

CPU time on a shared machine differs by 10 to 20 % from hour to hour; the number of instructions does not. One worker runs under
valgrind's callgrind, with the real HTTP server, flows, committers and clients; PostgreSQL, the stub PSP, the merchants' endpoints
and the load run outside, where they are not counted. A part is measured by leaving it out: the same load is offered again, and
the worker switches counting off inside the part (`bench.micro.instructions_worker`). The total is measured before that, without
any switch. The worker's clock is slow, so that jobs execute no more for each payment than they do without valgrind. Callers go in
waves, each of which is one group of every committer.

Counts belong to one build of Python and its libraries. CI holds the total of Debian's Python to `BUDGET`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import trio
import typer
from rich.console import Console
from rich.table import Table

from bench.generator.arrivals import Arrivals, Stage
from bench.generator.plan import Plan
from bench.lab.load import Generator, free_socket, offer, open_generators, settle
from bench.lab.scenarios import counted
from bench.lab.subjects import Setup, Subject, open_florin
from bench.micro.instructions_worker import PARTS, Given
from core.errors import FlorinError
from server import child_process
from server.child_process import allow_many_files
from server.telemetry import configure_logs

BUDGET = 1_300_000
"""Instructions of a payment at 32 callers, with Debian's Python 3.11.2. CI fails at 5 % more."""

PYTHON = (3, 11, 2)
CALLERS = 32
MERCHANTS = 4
"""Few, because keys and endpoints are read again every two seconds, in which valgrind lets fewer payments pass."""
PAYMENTS = 320
REPEATS = 2
REST = "trio, jobs and the rest"
PHASE_SECONDS_MAX = 120.0
START_SECONDS_MAX = 120.0
_SUMMARY = re.compile(rb"^(?:summary|totals): (\d+)", re.MULTILINE)
_console = Console(highlight=False, soft_wrap=True)


class InstructionsError(FlorinError):
    """Nothing can be counted; the text says what to do."""


class Counted(msgspec.Struct, frozen=True):
    """Instructions of a payment: the total of each repeat, and the parts."""

    totals: list[float]
    parts: dict[str, float]


def main(
    callers: Annotated[
        int, typer.Option(min=1, max=256, help="Concurrent callers; 1 shows the cost of groups of one.")
    ] = CALLERS,
    payments: Annotated[int, typer.Option(min=16, max=20_000, help="Payments of each repeat.")] = PAYMENTS,
    repeats: Annotated[int, typer.Option(min=1, max=20, help="Repeats of the total.")] = REPEATS,
    parts: Annotated[bool, typer.Option(help="Measure the parts too.")] = True,
    out: Annotated[Path | None, typer.Option(help="Keep callgrind's output in this directory.", show_default=False)] = None,
) -> None:
    """Count the instructions of a payment."""
    configure_logs("error")
    allow_many_files()
    counted = trio.run(count, callers, payments, repeats, list(PARTS) if parts else [], out)
    table = Table("part", "instructions", "share", box=None, pad_edge=False)
    total = sum(counted.totals) / len(counted.totals)
    rest = {REST: total - sum(counted.parts.values())} if counted.parts else {}
    for name, number in {**counted.parts, **rest}.items():
        table.add_row(name, f"{number:,.0f}", f"{number / total:.1%}")
    for number in counted.totals:
        table.add_row("together", f"{number:,.0f}")
    _console.print(table)


async def count(
    callers: int, payments: int, repeats: int, parts: Sequence[str], out: Path | None, *, agreement: float | None = None
) -> Counted:
    """Count the total, and then each part. With `agreement`, the total is repeated only until the two lowest differ by no more
    than that share: jobs that run less often than once in a repeat add to some of them. Raises `InstructionsError`.
    """
    if shutil.which("valgrind") is None:
        raise InstructionsError("valgrind is not installed: apt install valgrind")
    setup = Setup(merchants=MERCHANTS)
    async with (
        open_generators(1) as generators,
        open_florin(setup, generators) as florin,
        _open_counted(florin, out) as worker,
    ):
        with _stopped([*(one.pid for one in florin.processes), *florin.components["worker"]()]):
            await worker.load(generators, callers, 2 * payments)
            totals: list[float] = []
            while len(totals) < repeats and not _agree(totals, agreement):
                totals.append(await worker.counted(generators, callers, payments, leave_out=None))
            shares: dict[str, float] = {}
            if parts:
                switched = await worker.counted(generators, callers, payments, leave_out="nothing")
                for part in parts:
                    shares[part] = switched - await worker.counted(generators, callers, payments, leave_out=part)
    return Counted(totals, shares)


def _agree(totals: Sequence[float], agreement: float | None) -> bool:
    if agreement is None or len(totals) < 2:
        return False
    first, second = sorted(totals)[:2]
    return second <= (1 + agreement) * first


@contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[None]:
    """Stop the instance's own worker, which would take over some of the counted one's work, and first its supervisor."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


class _Worker:
    """The worker under callgrind, driven by lines on its input; it answers each with a line."""

    def __init__(self, process: "subprocess.Popen[bytes]", subject: Subject, directory: Path) -> None:
        self._process = process
        self._subject = subject
        self._directory = directory
        self._dumps = 0

    async def counted(self, generators: Sequence[Generator], callers: int, payments: int, *, leave_out: str | None) -> float:
        """The instructions per payment of a load, jobs' included, without those of a part."""
        await self.tell("plain" if leave_out is None else f"without {leave_out}")
        await self.load(generators, callers, 2 * callers)  # what the switch itself costs belongs to no payment
        await self._dump()
        await self.load(generators, callers, payments)
        return await self._dump() / payments

    async def load(self, generators: Sequence[Generator], callers: int, payments: int) -> None:
        """Offer that many payments, and wait until their webhooks have been sent. Raises `InstructionsError`."""
        plan = Plan(
            scenario="sync",
            url=self._subject.url,
            psp_url=self._subject.psp_url,
            keys=[],
            arrivals=Arrivals.CLOSED,
            stages=[Stage(PHASE_SECONDS_MAX, 0.0)],
            callers=callers,
            count_max=payments,
            begin_at=0.0,
            connections_max=callers,
            hears_webhooks=True,
        )
        load = await offer(generators, plan, self._subject.merchants.keys)
        if load.succeeded != payments:
            raise InstructionsError(f"only {load.succeeded} of {payments} payments succeeded: {counted(load.ended)}")
        await settle(self._subject.database_url)

    async def tell(self, line: str) -> None:
        """Give an order, and wait until it is carried out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        with trio.fail_after(PHASE_SECONDS_MAX):
            answer = await trio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
        if not answer:
            raise InstructionsError(f"the worker has ended: {(self._directory / 'log').read_text()[-800:].strip()}")

    async def _dump(self) -> int:
        """The instructions since the last dump."""
        self._dumps += 1
        await self.tell("dump")
        found = _SUMMARY.search((self._directory / f"callgrind.{self._dumps}").read_bytes())
        assert found is not None
        return int(found[1])


@asynccontextmanager
async def _open_counted(florin: Subject, out: Path | None) -> AsyncIterator[_Worker]:
    assert florin.home is not None
    directory = out or florin.home / "callgrind"
    directory.mkdir(parents=True, exist_ok=True)
    with free_socket() as listening, (directory / "log").open("wb") as log:
        subject = replace(florin, url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        given = Given(
            database_url=str(florin.database_url),
            key_file=str(florin.home / "keys" / "sealing.key"),
            descriptor=listening.fileno(),
        )
        command = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            "--toggle-collect=PyNumber_MatrixMultiply",
            "--toggle-collect=PyNumber_InPlaceMatrixMultiply",
            "--collect-atstart=yes",
            "--dump-before=PyObject_Dir",
            f"--callgrind-out-file={directory}/callgrind",
            *child_process.python("bench.micro.instructions_worker", msgspec.json.encode(given).decode()),
        ]
        process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[listening.fileno()],
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        try:
            worker = _Worker(process, subject, directory)
            with trio.fail_after(START_SECONDS_MAX):
                await worker.tell("ready?")
            # Under valgrind a program is told from outside to count; it looks for such orders every few thousand blocks.
            await trio.run_process(
                ["vgdb", f"--pid={process.pid}", "instrumentation", "on"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            yield worker
        finally:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    try:
        typer.run(main)
    except InstructionsError as error:
        sys.exit(str(error))
