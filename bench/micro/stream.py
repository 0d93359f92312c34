"""`python -m bench.micro.stream`: from commit to socket.

Three measurements on one worker with everything on this machine: one event to many sockets of a merchant; one event per second
for each of many merchants, with a socket each; and memory per socket. The commit time is taken in the worker when PostgreSQL has
answered, the arrival time in the process that holds the sockets when it has read the frame. Both use the system's monotonic
clock.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console
from rich.table import Table

from bench.measure import percentile, scratch_directory
from bench.micro.commit_rows import items, prepare
from core.ids import MerchantId
from server.api.events.stream import STREAMS_PER_MERCHANT_MAX
from server.child_process import allow_many_files
from server.clock import utc_now
from server.credentials import api_key, key_hash
from server.db.connection import open_session
from server.db.merchants.api_keys import add_api_key
from server.db.payments.changes import Applied
from server.flows.contexts import Payments
from server.http.server.listener import bind
from server.process.embedded_postgres import open_embedded
from server.process.worker import open_worker
from server.sealing import create_key_file
from server.settings import Settings
from server.uuid7 import uuid7

TIMEOUT_SECONDS = 60.0
WARM_UP_EVENTS = 5
_console = Console(highlight=False, soft_wrap=True)


def main(
    sockets: Annotated[int, typer.Option(min=1, max=STREAMS_PER_MERCHANT_MAX, help="Sockets of the one merchant.")] = 5_000,
    events: Annotated[int, typer.Option(min=1, max=1_000, help="Events sent to all of them, one after the other.")] = 30,
    merchants: Annotated[int, typer.Option(min=1, max=10_000, help="Merchants with one socket each.")] = 1_000,
    seconds: Annotated[int, typer.Option(min=1, max=600, help="Seconds for which each of them has one event per second.")] = 15,
) -> None:
    """Measure the stream; bounded, and on loopback only."""
    allow_many_files()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * max(sockets, merchants) + 500:
        raise typer.BadParameter(f"this needs some {2 * max(sockets, merchants) + 500} open files, and {soft} are allowed")
    with scratch_directory() as directory:
        trio.run(_run, directory, sockets, events, merchants, seconds)


async def _run(directory: Path, sockets: int, events: int, merchants: int, seconds: int) -> None:
    table = Table("", "sockets", "events", "frames", "p50 ms", "p99 ms", "max ms", "worker µs/frame", box=None, pad_edge=False)
    async with open_embedded(directory) as embedded:
        postgres = embedded.server
        spread, hot = await prepare(postgres.url, count=merchants)
        async with _worker(directory, postgres.url) as (payments, url):
            keys = await _keys(postgres.url, [*spread, *hot])
            before = _resident_bytes()
            async with _stream_reader(url, [keys[hot[0]]] * sockets, per_event=sockets) as reader:
                per_socket = (_resident_bytes() - before) / sockets
                found = await _measure(payments, reader, hot, events, pause_seconds=0.3)
                table.add_row("one event to all", *found.row(sockets))
            async with _stream_reader(url, [keys[one] for one in spread], per_event=1) as reader:
                found = await _measure(payments, reader, spread, merchants * seconds, pause_seconds=1 / merchants)
                table.add_row("an event a second each", *found.row(merchants))
    _console.print(table)
    _console.print(f"{per_socket / 1_024:,.0f} KiB of the worker's memory for a socket")
    _console.print(
        f"{len(os.sched_getaffinity(0))} cores shared by worker, PostgreSQL and the reader of all sockets, "
        f"Linux {platform.release()}, Python {platform.python_version()}, fsync on"
    )


@dataclass
class Found:
    """Commit times and read times by event id."""

    committed: dict[str, float] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    events: int = 0
    cpu_seconds: float = 0.0

    def row(self, sockets: int) -> list[str]:
        """A line of the table."""
        frames = len(self.milliseconds)
        figures = (statistics.median(self.milliseconds), percentile(self.milliseconds, 0.99), max(self.milliseconds))
        return [
            f"{sockets:,}",
            f"{self.events:,}",
            f"{frames:,}",
            *(f"{one:.1f}" for one in figures),
            f"{self.cpu_seconds / frames * 1e6:.1f}",
        ]


async def _measure(
    payments: Payments, reader: "StreamReader", merchants: list[MerchantId], events: int, *, pause_seconds: float
) -> Found:
    """Commit events on a schedule, as settling payments do, and compare their arrival."""
    await _commit(payments, merchants, WARM_UP_EVENTS, Found(), pause_seconds=0.05)
    expected = WARM_UP_EVENTS * reader.per_event
    await reader.until(expected)
    found = Found(events=events)
    began = time.process_time()
    await _commit(payments, merchants, events, found, pause_seconds=pause_seconds)
    await reader.until(expected + events * reader.per_event)
    found.cpu_seconds = time.process_time() - began
    for event_id, moment in await reader.read():
        if event_id in found.committed:
            found.milliseconds.append((moment - found.committed[event_id]) * 1_000)
    assert len(found.milliseconds) == events * reader.per_event, "every frame arrives, once"
    return found


async def _commit(payments: Payments, merchants: list[MerchantId], events: int, found: Found, *, pause_seconds: float) -> None:
    rows = items(merchants, events)
    for at in range(0, events, 200):
        async with trio.open_nursery() as nursery:
            for row in rows[at : at + 200]:
                nursery.start_soon(payments.creations.submit, row.creation)
    began = trio.current_time()

    async def settle(number: int) -> None:
        applied = await payments.changes.submit(rows[number].change)
        moment = time.monotonic()
        assert isinstance(applied, Applied)
        assert applied.event is not None
        found.committed[f"evt_{applied.event.id.hex}"] = moment
        payments.notify(applied)

    async with trio.open_nursery() as nursery:
        for number in range(events):
            await trio.sleep_until(began + number * pause_seconds)
            nursery.start_soon(settle, number)


@asynccontextmanager
async def _worker(directory: Path, database_url: str) -> AsyncIterator[tuple[Payments, str]]:
    """A worker in this process."""
    key_file = directory / "sealing.key"
    create_key_file(key_file)
    listening = bind("127.0.0.1", 0)
    settings = Settings(database_url=database_url, key_file=key_file, sweep_seconds=60)
    async with open_session(database_url) as connection:
        await connection.execute("UPDATE webhook_endpoints SET enabled = false")
    async with open_worker(settings, listening) as (contexts, _):
        yield contexts.payments, f"127.0.0.1:{listening.getsockname()[1]}"


async def _keys(database_url: str, merchants: list[MerchantId]) -> dict[MerchantId, str]:
    keys = {}
    async with open_session(database_url) as connection:
        for merchant_id in merchants:
            key = keys[merchant_id] = api_key("test", merchant_id)
            digest = key_hash(key)
            await add_api_key(connection, merchant_id, uuid7(), secret_sha256=digest, hint=key[-4:], now=utc_now())
    return keys


class StreamReader:
    """The process that holds the sockets. `per_event`: the number of them that receive each event."""

    def __init__(self, process: trio.Process, *, per_event: int) -> None:
        self._process = process
        self._buffer = b""
        self.per_event = per_event

    async def tell(self, lines: list[str]) -> None:
        """Send it lines."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all("".join(f"{line}\n" for line in lines).encode())

    async def until(self, frames: int) -> None:
        """Wait until it has read that many frames."""
        with trio.fail_after(TIMEOUT_SECONDS):
            while await self._ask("count") < frames:  # noqa: ASYNC110 - another process counts
                await trio.sleep(0.1)

    async def read(self) -> list[tuple[str, float]]:
        """The ids of the events it has read, with times."""
        lines = [(await self.line()).split() for _ in range(await self._ask("list"))]
        return [(event_id, float(moment)) for event_id, moment in lines]

    async def _ask(self, what: str) -> int:
        await self.tell([what])
        return int(await self.line())

    async def line(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            self._buffer += await self._process.stdout.receive_some(1_048_576)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


@asynccontextmanager
async def _stream_reader(url: str, keys: list[str], *, per_event: int) -> AsyncIterator[StreamReader]:
    """Open all sockets."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "bench.micro.stream_reader", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        reader = StreamReader(process, per_event=per_event)
        await reader.tell([str(len(keys)), *keys])
        with trio.fail_after(TIMEOUT_SECONDS):
            assert await reader.line() == "open"
        yield reader
    finally:
        process.kill()
        with trio.move_on_after(5, shield=True):
            await process.wait()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    typer.run(main)
