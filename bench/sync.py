"""`python -m bench.sync`: the sync flow, closed loop: POST with a token, the PSP authorizes, two commits, the merchant is
notified.

A payment counts when its notification was answered. For each latency of the PSP and number of connections: payments per second,
the caller's latency, and CPU µs per payment of the worker and PostgreSQL. All on one machine, over loopback.
"""

import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import msgspec
import trio
import typer
from rich.console import Console
from rich.table import Table

from bench.checkout import Result, until_settled
from bench.measure import CpuMeter, family, percentile
from core.signing import sign_timestamped
from server.cli.doctor import print_diagnosis
from server.db.connection import Connection, open_session
from server.db.promises import broken_promises
from server.http.client import Client, ClientOptions, open_client
from server.http.errors import ClientError
from server.instance import Instance, Options, open_instance
from server.telemetry import configure_logs

WARM_UP = 500
_console = Console(highlight=False, soft_wrap=True)
_body = msgspec.json.encode({"amount": 1_990, "currency": "EUR", "order_id": "bench", "confirm": True, "token": "tok_paid"})


def main(
    payments: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many payments for each line.")] = 5_000,
    connections: Annotated[str, typer.Option(help="Connections at once, by commas.")] = "64,256,1000",
    latencies: Annotated[str, typer.Option(help="What the PSP takes for each answer in milliseconds, by commas.")] = "0,50",
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many workers.")] = 1,
    seconds: Annotated[float, typer.Option(min=1, max=3_600, help="The longest that load is offered for each line.")] = 60,
) -> None:
    """Charge tokens as fast as they go."""
    configure_logs("warning")
    with tempfile.TemporaryDirectory(prefix="florin-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        settings = {"FLORIN_LOG_LEVEL": "warning", "FLORIN_REQUESTS_IN_FLIGHT_MAX": "4096"}
        options = Options(data_directory=Path(name), workers=workers, port=0, psp_port=0, shop_port=0, settings=settings)
        plan = [(int(ms), int(count)) for ms in latencies.split(",") for count in connections.split(",")]
        is_kept = trio.run(_run, options, plan, payments, seconds)
    if not is_kept:
        raise typer.Exit(1)


async def _run(options: Options, plan: list[tuple[int, int]], payments: int, seconds: float) -> bool:
    table = Table("PSP ms", "connections", "payments/s", "p50 ms", "p99 ms", "worker µs", "PostgreSQL µs", "errors", box=None)
    async with open_instance(options) as instance, open_session(instance.running.database_url) as connection:
        for psp_ms, connections in plan:
            async with open_client(ClientOptions(connections_per_origin_max=connections)) as http:
                await _set_latency(instance, http, psp_ms)
                await _offer(instance, http, Result(), connections, max(WARM_UP, connections), seconds)
                await until_settled(connection)
                result = await _measure(instance, connection, http, connections, payments, seconds)
            rate = result.payments / result.settled_seconds if result.settled_seconds else 0.0
            times = [f"{percentile(result.create_ms, one):,.1f}" for one in (0.5, 0.99)]
            cpu = [f"{used / max(result.payments, 1) * 1e6:,.0f}" for used in result.cpu_seconds.values()]
            table.add_row(str(psp_ms), str(connections), f"{rate:,.0f}", *times, *cpu, str(result.errors))
        forged_us = await _forge(instance, payments)
        violations = await broken_promises(connection)
    _console.print(table)
    _console.print(f"a forged webhook costs the worker {forged_us:,.0f} µs")
    _console.print(
        f"{payments} payments a line, {options.workers} worker(s), {len(os.sched_getaffinity(0))} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}, fsync on; all programs share the cores"
    )
    if violations:
        print_diagnosis(violations, _console)
        return False
    _console.print("all promises are kept")
    return True


async def _set_latency(instance: Instance, http: Client, psp_ms: int) -> None:
    latency = {"seconds": psp_ms / 1_000} if psp_ms else None
    await http.request("POST", f"{instance.running.psp_url}/control", body=msgspec.json.encode({"latency": latency}))


async def _measure(
    instance: Instance, connection: Connection, http: Client, connections: int, payments: int, seconds: float
) -> Result:
    result = Result()
    meter = CpuMeter.start(
        {
            "worker": lambda: instance.supervisor.pids,
            "PostgreSQL": lambda: family(instance.postgres.pid) if instance.postgres else [],
        }
    )
    began = trio.current_time()
    await _offer(instance, http, result, connections, payments, seconds)
    await until_settled(connection)
    result.settled_seconds = trio.current_time() - began
    result.cpu_seconds = meter.used_seconds()
    return result


async def _forge(instance: Instance, count: int) -> float:
    """What a webhook with a wrong signature costs, in CPU µs of the worker."""
    body = msgspec.json.encode({"id": "evt_1", "type": "intent.captured", "data": {"of": "x" * 1_000}})
    url = instance.demo.psp_webhook_url(instance.api_url)
    left = iter(range(count))

    async def attack(http: Client) -> None:
        for _ in left:
            headers = [("sandbox-signature", sign_timestamped("forged", timestamp=int(time.time()), body=body))]
            response = await http.request("POST", url, headers=headers, body=body)
            assert response.status == 400

    async with open_client() as http:
        meter = CpuMeter.start({"worker": lambda: instance.supervisor.pids})
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(attack, http)
        return meter.used_seconds()["worker"] / count * 1e6


async def _offer(instance: Instance, http: Client, result: Result, connections: int, payments: int, seconds: float) -> None:
    left = iter(range(payments))
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(_caller, instance, http, result, left)


async def _caller(instance: Instance, http: Client, result: Result, left: Iterator[int]) -> None:
    headers = [("authorization", f"Bearer {instance.demo.api_key}"), ("content-type", "application/json")]
    url = f"{instance.api_url}/v1/payments"
    for _ in left:
        began = trio.current_time()
        try:
            response = await http.request("POST", url, headers=[*headers, ("idempotency-key", uuid4().hex)], body=_body)
        except ClientError:
            result.errors += 1
            continue
        if response.status != 201:
            result.errors += 1
            continue
        result.create_ms.append((trio.current_time() - began) * 1_000)
        result.payments += 1


if __name__ == "__main__":
    typer.run(main)
