"""`python -m bench.micro.storm`: many websockets on one worker under payments, and their reconnection after its death.

A Florin with one worker takes charges of many merchants, without and then with websockets that listen to all of them; the
difference is the cost of the frames. Then the worker is killed, and all sockets reconnect to its replacement within some seconds,
from where they were. At the end `florin doctor`'s checks must pass, and no socket may have missed an event or seen one twice.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import trio
import typer
from rich.console import Console

from bench.generator.arrivals import Arrivals, Stage
from bench.generator.plan import IN_FLIGHT_MAX, Plan
from bench.lab.load import Generator, Load, offer, open_generators, settle
from bench.lab.subjects import Setup, Subject, open_florin
from bench.measure import cpu_seconds, percentile, resident_bytes
from bench.micro.storm.reader import State
from server import child_process
from server.child_process import allow_many_files
from server.db.connection import open_session
from server.db.doctor.run import broken_promises
from server.telemetry import configure_logs

WAIT_SECONDS_MAX = 120.0
_console = Console(highlight=False, soft_wrap=True)


def main(
    sockets: Annotated[int, typer.Option(min=1, max=15_000, help="Number of websockets.")] = 10_000,
    merchants: Annotated[int, typer.Option(min=1, max=5_000, help="Number of merchants that share them.")] = 200,
    rate: Annotated[float, typer.Option(min=1, max=5_000, help="Payments, and so events, per second.")] = 500.0,
    seconds: Annotated[float, typer.Option(min=2, max=600, help="Seconds of each load.")] = 10.0,
    spread: Annotated[float, typer.Option(min=0, max=60, help="Seconds over which sockets reconnect.")] = 5.0,
) -> None:
    """Measure many websockets, and a storm of reconnections."""
    configure_logs("error")
    allow_many_files()
    broken = trio.run(_run, sockets, merchants, rate, seconds, spread)
    _console.print("BROKEN PROMISES: " + "; ".join(broken) if broken else "all promises are kept")
    raise typer.Exit(1 if broken else 0)


async def _run(sockets: int, merchants: int, rate: float, seconds: float, spread: float) -> list[str]:
    async with open_generators(1) as generators, open_florin(Setup(merchants=merchants), generators) as florin:
        load = _Loading(florin, generators, rate, seconds)
        await load.run()
        alone_us, _ = await load.run()
        keys = florin.merchants.keys[0]
        before_bytes = resident_bytes(load.worker)
        async with _open_reader(florin, [keys[number % len(keys)] for number in range(sockets)], spread) as reader:
            await reader.until_open(sockets)
            per_socket = (resident_bytes(load.worker) - before_bytes) / sockets
            listened_us, payments = await load.run()
            state = await reader.state()
            frames = state.frames
            p50, p99 = (percentile(state.latencies_ms, fraction) for fraction in (0.5, 0.99))
            _console.print(
                f"{sockets:,} sockets of {len(keys)} merchants, {rate:g} events/s: {frames:,} frames, "
                f"{(listened_us - alone_us) * payments / frames:.1f} µs of the worker a frame; from the change to the frame "
                f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; {per_socket / 1_024:.0f} KiB a socket"
            )
            began = time.monotonic()
            os.kill(load.worker, signal.SIGKILL)
            await reader.until_lost(sockets)
            state = await reader.until_open(sockets)
            _console.print(
                f"worker killed: all sockets open again {time.monotonic() - began:.1f} s later, spread over {spread:g} s; "
                f"{state.refused:,} handshakes were refused meanwhile"
            )
            await load.run()
            state = await reader.state()
        broken = [f"{state.gaps} events were missed or came twice"] if state.gaps else []
        async with open_session(str(florin.database_url)) as connection:
            return broken + [f"{one.check.name}: {len(one.rows)} rows" for one in await broken_promises(connection)]


class _Loading:
    """The payments of all merchants, at a constant rate."""

    def __init__(self, florin: Subject, generators: Sequence[Generator], rate: float, seconds: float) -> None:
        self._florin = florin
        self._generators = generators
        self._plan = Plan(
            scenario="sync",
            url=florin.url,
            psp_url=florin.psp_url,
            keys=[],
            arrivals=Arrivals.POISSON,
            stages=[Stage(seconds, rate)],
            callers=0,
            count_max=1_000_000,
            begin_at=0.0,
            connections_max=IN_FLIGHT_MAX,
            timeout_seconds=60.0,
            hears_webhooks=True,
        )

    @property
    def worker(self) -> int:
        """The worker's process."""
        return next(iter(self._florin.components["worker"]()))

    async def run(self) -> tuple[float, int]:
        """Offer the load once. Returns µs of the worker for a payment, and the number of payments."""
        before = cpu_seconds([self.worker])
        load: Load = await offer(self._generators, self._plan, self._florin.merchants.keys)
        await settle(self._florin.database_url)
        return (cpu_seconds([self.worker]) - before) / load.succeeded * 1e6, load.succeeded


class _Reader:
    """The process that holds the sockets."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._unread = b""

    async def state(self) -> State:
        """Ask for the state of all sockets."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        await self._process.stdin.send_all(b"state\n")
        while b"\n" not in self._unread:
            part = await self._process.stdout.receive_some()
            assert part, "the reader has ended"
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return msgspec.json.decode(line, type=State)

    async def until_open(self, sockets: int) -> State:
        """Wait until all are open."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            while (state := await self.state()).open < sockets:  # noqa: ASYNC110 - another process counts
                await trio.sleep(0.1)
        return state

    async def until_lost(self, sockets: int) -> None:
        """Wait until each was lost once."""
        with trio.fail_after(WAIT_SECONDS_MAX):
            while (await self.state()).lost < sockets:  # noqa: ASYNC110 - another process counts
                await trio.sleep(0.02)


@asynccontextmanager
async def _open_reader(florin: Subject, keys: list[str], spread: float) -> AsyncIterator[_Reader]:
    command = child_process.python("bench.micro.storm.reader", urlsplit(florin.url).netloc, str(spread))
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        await process.stdin.send_all("".join(f"{line}\n" for line in [str(len(keys)), *keys]).encode())
        yield _Reader(process)
    finally:
        process.kill()
        with trio.move_on_after(5, shield=True):
            await process.wait()


if __name__ == "__main__":
    try:
        typer.run(main)
    except KeyboardInterrupt:
        sys.exit(130)
