"""`python -m bench.micro.batch`: a batch of many charges at a PSP that takes two seconds for each, over the API of one worker.

The worker, PostgreSQL, the sandbox PSP and this client share the cores. At the end `florin doctor`'s checks must pass.
"""

from functools import partial
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import trio
import typer
from rich.console import Console

from bench.measure import CpuMeter, peak_bytes, process_tree
from bench.micro.instance import measure_instance
from server.http.client.client import ClientOptions, open_client
from server.process.instance import Instance

SECONDS_MAX = 900
SLOW_REPLIES = ClientOptions(response_bytes_max=64 * 1_048_576, header_seconds=SECONDS_MAX, total_seconds=SECONDS_MAX)
_console = Console(highlight=False, soft_wrap=True)


def main(
    items: Annotated[int, typer.Option(min=1, max=10_000, help="Number of items.")] = 5_000,
    latency: Annotated[float, typer.Option(min=0, max=60, help="Seconds that the PSP takes for each call.")] = 2.0,
    concurrency: Annotated[int, typer.Option(min=1, max=2_500, help="Items under way at the same time.")] = 1_800,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Number of batches, one after another.")] = 3,
) -> None:
    """Charge a batch of tokens at a slow PSP."""
    measure_instance(lambda instance: _run(instance, items, latency, concurrency, rounds))


async def _run(instance: Instance, items: int, latency: float, concurrency: int, rounds: int) -> None:
    async with open_client(SLOW_REPLIES) as http:
        control = partial(http.request, "POST", f"{instance.running.psp_url}/control")
        await control(body=b'{"webhooks": "lose"}')
        await control(body=msgspec.json.encode({"latency": {"seconds": latency} if latency else None}))
        for number in range(rounds):
            await _measure(instance, http, number, items, concurrency)


async def _measure(instance: Instance, http: Any, number: int, items: int, concurrency: int) -> None:
    worker = instance.supervisor.pids[0]
    groups = {"worker": lambda: [worker]}
    if instance.postgres is not None:
        postgres = instance.postgres.pid
        groups["PostgreSQL"] = lambda: process_tree(postgres)
    charges = [
        {"type": "charge", "order_id": f"{number}-{item}", "amount": 1_990, "currency": "EUR", "token": "tok_paid"}
        for item in range(items)
    ]
    body = msgspec.json.encode({"items": charges, "concurrency": concurrency})
    headers = [
        ("authorization", f"Bearer {instance.demo.api_key}"),
        ("idempotency-key", str(uuid4())),
        ("content-type", "application/json"),
    ]
    meter, began = CpuMeter.start(groups), trio.current_time()
    response = await http.request("POST", f"{instance.api_url}/v1/batches", headers=headers, body=body, total_seconds=SECONDS_MAX)
    seconds = trio.current_time() - began
    used = ", ".join(f"{name} {cpu / items * 1e6:,.0f}" for name, cpu in meter.used_seconds().items())
    batch = msgspec.json.decode(response.body)
    outcomes = {name: count for name, count in batch["outcomes"].items() if count}
    _console.print(
        f"{items} items, {concurrency} at once: answered {response.status} after {seconds:.2f} s, {outcomes}; "
        f"CPU µs an item: {used}; peak memory of the worker {peak_bytes(worker) / 1_048_576:,.0f} MiB"
    )


if __name__ == "__main__":
    typer.run(main)
