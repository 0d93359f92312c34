"""`python -m bench.micro.verify`: how fast one worker fetches many payments from a slow PSP, and the memory for that.

The payments are created and paid on a Florin that is started for it; the PSP sends no webhooks, so only fetching settles them.
Then one worker, this process, fetches all of them at once, and each result is committed by itself.
"""

import resource
from functools import partial
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import msgspec
import trio
import typer
from rich.console import Console

from bench.measure import cpu_seconds, process_tree
from bench.micro.instance import measure_instance
from core.evidence import Source
from core.ids import MerchantId
from core.payment import Payment, Status
from server.db.connection import open_session
from server.db.payments.payments import Filter, list_payments
from server.flows.payments.verify import Verified, verify_all
from server.http.client.client import Client, ClientOptions, open_client
from server.http.server.listener import bind
from server.process.instance import Instance
from server.process.worker import open_worker
from server.sandbox.intents import PAID_CARD
from server.settings import Settings

PAGE = 100
CUSTOMERS = 64
PAY_SECONDS_MAX = 600
_console = Console(highlight=False, soft_wrap=True)


def main(
    payments: Annotated[int, typer.Option(min=1, max=100_000, help="Number of payments.")] = 5_000,
    latency: Annotated[float, typer.Option(min=0, max=60, help="Seconds that the PSP takes for each answer.")] = 2.0,
    concurrency: Annotated[int, typer.Option(min=1, max=8_000, help="Concurrent calls.")] = 2_500,
) -> None:
    """Fetch many payments from a slow PSP at once."""
    measure_instance(lambda instance: _run(instance, payments, latency, concurrency))


async def _run(instance: Instance, payments: int, latency: float, concurrency: int) -> None:
    async with open_client(ClientOptions(connections_per_origin_max=64)) as http:
        control = partial(http.request, "POST", f"{instance.running.psp_url}/control")
        await control(body=b'{"webhooks": "lose"}')
        await _pay(instance, http, payments)
        async with open_session(instance.database_url) as connection:  # two workers share it, and one of them is idle
            await connection.run("UPDATE psp_accounts SET concurrency_max = $1", 2 * concurrency)
        wanted = msgspec.json.encode({"latency": {"seconds": latency} if latency else None})
        await control(body=wanted)
        await _measure(instance, latency, concurrency)
        await control(body=b'{"latency": null}')


async def _pay(instance: Instance, http: Client, payments: int) -> None:
    """Open that many pages and pay them."""
    headers = [("authorization", f"Bearer {instance.demo.api_key}"), ("content-type", "application/json")]
    wanted = msgspec.json.encode({"amount": 1_990, "currency": "EUR", "order_id": "bench"})
    left = iter(range(payments))

    async def customer() -> None:
        for _ in left:
            key = ("idempotency-key", uuid4().hex)
            response = await http.request("POST", f"{instance.api_url}/v1/payments", headers=[*headers, key], body=wanted)
            await http.request("POST", msgspec.json.decode(response.body)["payment_url"], body=f"card={PAID_CARD}".encode())

    with trio.fail_after(PAY_SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            for _ in range(CUSTOMERS):
                nursery.start_soon(customer)


async def _measure(instance: Instance, latency: float, concurrency: int) -> None:
    settings = Settings(database_url=instance.database_url, key_file=Path(instance.running.key_file), sweep_seconds=3_600)
    listening = bind("127.0.0.1", 0)
    async with open_worker(settings, listening) as (contexts, _):
        payments = await _stored(instance)
        before = resource.getrusage(resource.RUSAGE_SELF)
        postgres = instance.postgres.pid if instance.postgres else None
        postgres_before = cpu_seconds(process_tree(postgres)) if postgres else 0.0
        ends: dict[Status, int] = {}
        failures = 0
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[Verified](100)
            nursery.start_soon(
                partial(verify_all, contexts.payments, payments, send, source=Source.RECHECK, concurrency=concurrency)
            )
            async for one in receive:
                ends[one.payment.status] = ends.get(one.payment.status, 0) + 1
                failures += one.failure is not None
        seconds = trio.current_time() - began
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        count = len(payments)
        shown = ", ".join(f"{number} {status}" for status, number in ends.items())
        _console.print(
            f"{count} payments at {latency:g} s each, {concurrency} at once: {seconds:.2f} s; {shown}, {failures} failures"
        )
        _console.print(f"CPU µs per verification: worker {cpu / count * 1e6:,.0f}", end="")
        _console.print(
            f", PostgreSQL {(cpu_seconds(process_tree(postgres)) - postgres_before) / count * 1e6:,.0f}" if postgres else ""
        )
        peak, rest = after.ru_maxrss / 1_024, before.ru_maxrss / 1_024
        _console.print(f"memory of the worker at most: {peak:,.0f} MiB, {rest:,.0f} before it began")


async def _stored(instance: Instance) -> list[Payment]:
    """All open payments of the demo merchant."""
    found: list[Payment] = []
    async with open_session(instance.database_url) as connection:
        after = None
        while True:
            wanted = Filter(status=Status.PENDING)
            page, after = await list_payments(connection, MerchantId(instance.demo.merchant_id), wanted, after=after, limit=PAGE)
            found += page
            if after is None:
                return found


if __name__ == "__main__":
    typer.run(main)
