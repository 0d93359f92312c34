"""Killed workers and a load balancer in front: everything with real processes."""

import contextlib
import os
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx2
import msgspec
import pytest
import trio

from server.cli.deploy import haproxy
from server.db.connection import Connection
from server.db.doctor.run import broken_promises
from server.http.client.client import Client, open_client
from server.http.client.errors import ClientError
from server.process.instance import Instance, Options, open_instance
from tests.conftest import program
from tests.support.florin import PAID, eventually, order

pytestmark = pytest.mark.slow

KILLS = 5
CUSTOMERS = 16


@pytest.fixture
async def instance(directory: Path) -> AsyncIterator[Instance]:
    """Two workers on one port, with a short lease so that a dead worker's deliveries are soon claimed."""
    settings = {"FLORIN_DELIVERY_SECONDS": "2", "FLORIN_LOG_LEVEL": "error"}
    options = Options(data_directory=directory, workers=2, port=0, psp_port=0, shop_port=0, settings=settings)
    async with open_instance(options) as running:
        yield running


async def test_killed_workers_are_replaced_and_lose_nothing(instance: Instance) -> None:
    """kill -9 under load: acknowledged payments exist, and paid ones are settled and reported once."""
    acknowledged: set[str] = set()
    paid: set[str] = set()
    stop = trio.Event()
    async with open_client() as http, trio.open_nursery() as customers:
        for _ in range(CUSTOMERS):
            customers.start_soon(_buy_until, stop, instance, http, acknowledged, paid)
        for kill in range(KILLS):
            await _more_than(paid, len(paid) + 20)
            victim = instance.supervisor.pids[kill % 2]
            os.kill(victim, signal.SIGKILL)
            await _replaced(instance, victim)
        stop.set()

    assert instance.supervisor.restarts == KILLS
    connection = await Connection.open(instance.database_url)
    try:
        stored = {f"pay_{row[0].hex}": row[1] for row in await connection.query("SELECT id, status FROM payment_requests")}
        assert acknowledged <= stored.keys()
        assert await eventually(partial(_all_settled, connection, paid), seconds=40)
        assert await broken_promises(connection) == []
        copies = await connection.query("SELECT count(*) FROM events WHERE type = 'payment.succeeded'")
        assert copies[0][0] >= len(paid)
    finally:
        connection.discard()
    print(f"kill -9 of {KILLS} workers under load: {len(acknowledged)} acknowledged, {len(paid)} paid, none lost")


async def _buy_until(stop: trio.Event, instance: Instance, http: Client, acknowledged: set[str], paid: set[str]) -> None:
    """A customer that retries with the same key, as the documentation says, for a limited time."""
    while not stop.is_set():
        payment = await _create(instance, http)
        acknowledged.add(payment["id"])
        form = f"card={PAID}".encode()
        response = await http.request("POST", payment["payment_url"], body=form)
        assert response.status in (200, 303)
        paid.add(payment["id"])


async def _create(instance: Instance, http: Client) -> dict[str, str]:
    headers = [("authorization", f"Bearer {instance.demo.api_key}"), ("idempotency-key", uuid4().hex)]
    body = msgspec.json.encode(order())
    with trio.fail_after(30):
        while True:
            with contextlib.suppress(ClientError):
                response = await http.request("POST", f"{instance.api_url}/v1/payments", headers=headers, body=body)
                if response.status == 201:
                    payment: dict[str, str] = msgspec.json.decode(response.body)
                    if payment["payment_url"]:
                        return payment
                assert response.status in (201, 409, 502, 503, 504), response.body
            await trio.sleep(0.1)


async def _all_settled(connection: Connection, paid: set[str]) -> bool:
    """Return whether every paid payment is settled and every delivery has arrived."""
    rows = await connection.query("SELECT id FROM payment_requests WHERE status <> 'SUCCEEDED'")
    late = [row for row in rows if f"pay_{row[0].hex}" in paid]
    return not late and not await connection.query("SELECT 1 FROM deliveries WHERE state <> 'DELIVERED' LIMIT 1")


async def _more_than(paid: set[str], count: int) -> None:
    async def enough() -> bool:
        await trio.lowlevel.checkpoint()
        return len(paid) > count

    assert await eventually(enough)


async def _replaced(instance: Instance, victim: int) -> None:
    async def gone() -> bool:
        await trio.lowlevel.checkpoint()
        return victim not in instance.supervisor.pids

    assert await eventually(gone)


async def test_haproxy_spreads_requests_and_survives_a_worker(directory: Path) -> None:
    binary = program("haproxy")
    options = Options(data_directory=directory / "data", workers=2, port=0, psp_port=0, shop_port=0, port_per_worker=True)
    async with open_instance(options) as instance:
        front = _free_port()
        ports = [int(url.rpartition(":")[2]) for url in instance.running.api_urls]
        text = haproxy.render(bind=f"127.0.0.1:{front}", host="127.0.0.1", port=0, workers=2)
        for number, port in enumerate(ports):
            text = text.replace(f"worker{number} 127.0.0.1:{number}", f"worker{number} 127.0.0.1:{port}")
        configuration = directory / "haproxy.cfg"
        configuration.write_text(text)
        await trio.run_process([binary, "-c", "-f", str(configuration)], capture_stdout=True, capture_stderr=True)
        async with trio.open_nursery() as nursery:
            run_balancer = partial(trio.run_process, [binary, "-db", "-f", str(configuration)], stderr=subprocess.DEVNULL)
            await nursery.start(run_balancer)
            await _use_balancer(instance, f"http://127.0.0.1:{front}")
            nursery.cancel_scope.cancel()


async def _use_balancer(instance: Instance, url: str) -> None:
    headers = {"authorization": f"Bearer {instance.demo.api_key}"}
    async with httpx2.AsyncClient(timeout=10) as http:

        async def healthy() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                return (await http.get(f"{url}/healthz")).status_code == 200
            return False

        assert await eventually(healthy)
        for _ in range(40):
            key = {"idempotency-key": uuid4().hex}
            assert (await http.post(f"{url}/v1/payments", json=order(), headers=headers | key)).status_code == 201
        assert await _workers_that_wrote(instance) == 2
        victim = instance.supervisor.pids[0]
        os.kill(victim, signal.SIGKILL)
        statuses: Counter[int] = Counter()
        for _ in range(40):
            key = {"idempotency-key": uuid4().hex}
            try:
                response = await http.post(f"{url}/v1/payments", json=order(), headers=headers | key)
            except httpx2.RemoteProtocolError:  # HAProxy cuts the request on a connection to the killed worker
                statuses[0] += 1
            else:
                statuses[response.status_code] += 1
        # Only a request on its way to the killed worker may fail; it is repeated with its key.
        assert statuses[201] >= 39, statuses
        await _replaced(instance, victim)
        since = trio.current_time()
        reply = await http.get(f"{url}/v1/events?types=webhook_endpoint.*&wait=32", headers=headers, timeout=60)
        assert (reply.status_code, reply.json().get("data")) == (200, []), reply.text
        assert 31 < trio.current_time() - since < 45  # HAProxy's usual limit is 30 s
    connection = await Connection.open(instance.database_url)
    assert await broken_promises(connection) == []
    connection.discard()


async def _workers_that_wrote(instance: Instance) -> int:
    """The number of workers that have written payments: each does so on its own connection."""
    connection = await Connection.open(instance.database_url)
    rows = await connection.query(
        """
        SELECT count(DISTINCT pid)::integer FROM pg_stat_activity
         WHERE application_name = 'florin committer' AND query LIKE '%payments are accepted%'
        """
    )
    connection.discard()
    count: int = rows[0][0]
    return count


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
