"""The checkout scenario, closed loop: each customer creates a payment, pays it on the hosted page, and comes again.

A payment counts when it is settled: SUCCEEDED in the database, its event written and its notification answered by the merchant.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import msgspec
import trio

from bench.measure import CpuMeter, family
from server.db.connection import Connection, open_session
from server.db.promises import Violation, broken_promises
from server.http.client import Client, ClientOptions, open_client
from server.http.errors import ClientError
from server.instance import Instance
from server.sandbox.intents import PAID_CARD

SETTLE_SECONDS = 60.0
_FORM = f"card={PAID_CARD}".encode()


@dataclass(slots=True)
class Result:
    """What a run has measured. Latencies are in milliseconds, as the customer sees them."""

    payments: int = 0
    errors: int = 0
    settled_seconds: float = 0.0
    create_ms: list[float] = field(default_factory=list)
    pay_ms: list[float] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)


async def run(instance: Instance, *, customers: int, payments_max: int, seconds_max: float, warm_up: int) -> Result:
    """Warm up, measure, wait until all is settled, and check every promise."""
    async with (
        open_client(ClientOptions(connections_per_origin_max=customers)) as http,
        open_session(instance.running.database_url) as connection,
    ):
        await offer(instance, http, Result(), customers=customers, payments_max=warm_up, seconds_max=seconds_max)
        await until_settled(connection)
        result = Result()
        meter = CpuMeter.start(
            {
                "worker": lambda: instance.supervisor.pids,
                "PostgreSQL": lambda: family(instance.postgres.pid) if instance.postgres else [],
                "sandbox PSP and shop": lambda: [instance.sandbox.pid],
            }
        )
        began = trio.current_time()
        await offer(instance, http, result, customers=customers, payments_max=payments_max, seconds_max=seconds_max)
        await until_settled(connection)
        result.settled_seconds = trio.current_time() - began
        result.cpu_seconds = meter.used_seconds()
        result.violations = await broken_promises(connection)
        return result


async def offer(
    instance: Instance, http: Client, result: Result, *, customers: int, payments_max: int, seconds_max: float
) -> None:
    """So many customers, each with one payment after another, until all are made or the time is over."""
    left = iter(range(payments_max))
    with trio.move_on_after(seconds_max):
        async with trio.open_nursery() as nursery:
            for _ in range(customers):
                nursery.start_soon(_customer, instance, http, result, left)


async def _customer(instance: Instance, http: Client, result: Result, left: Iterator[int]) -> None:
    headers = [("authorization", f"Bearer {instance.demo.api_key}"), ("content-type", "application/json")]
    for _ in left:
        try:
            began = trio.current_time()
            body = msgspec.json.encode({"amount": 1_990, "currency": "EUR", "order_id": "bench"})
            response = await http.request(
                "POST", f"{instance.api_url}/v1/payments", headers=[*headers, ("idempotency-key", uuid4().hex)], body=body
            )
            created = trio.current_time()
            if response.status != 201:
                result.errors += 1
                continue
            await http.request("POST", msgspec.json.decode(response.body)["payment_url"], body=_FORM)
            result.create_ms.append((created - began) * 1_000)
            result.pay_ms.append((trio.current_time() - created) * 1_000)
            result.payments += 1
        except ClientError:
            result.errors += 1


async def until_settled(connection: Connection) -> None:
    """Wait until nothing is on its way any more, within `SETTLE_SECONDS`."""
    with trio.fail_after(SETTLE_SECONDS):
        while True:
            rows = await connection.query(
                """
                SELECT (SELECT count(*) FROM payment_requests WHERE due_at IS NOT NULL)
                     + (SELECT count(*) FROM deliveries WHERE due_at IS NOT NULL)
                """
            )
            if rows[0][0] == 0:
                return
            await trio.sleep(0.02)
