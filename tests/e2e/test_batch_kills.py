"""kill -9 of workers at random moments of a batch: every item is charged once, and the batch ends."""

import os
import random
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import trio

from server.db.connection import Connection
from server.db.doctor.run import broken_promises
from server.process.instance import Instance, Options, open_instance
from tests.support.florin import eventually

pytestmark = pytest.mark.slow

KILLS, KILLS_LONG = 2, 20
ITEMS_PER_KILL = 40


@pytest.mark.timeout(1_500)
async def test_a_batch_survives_its_workers(directory: Path, request: pytest.FixtureRequest) -> None:
    kills = KILLS_LONG if request.config.getoption("--long") else KILLS
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    settings = {"FLORIN_PSP_SECONDS": "2", "FLORIN_LOG_LEVEL": "error", "FLORIN_SWEEP_SECONDS": "0.2"}
    options = Options(data_directory=directory, workers=2, port=0, psp_port=0, shop_port=0, settings=settings)
    async with open_instance(options) as instance, httpx2.AsyncClient(timeout=60) as http:
        await http.post(f"{instance.running.psp_url}/control", json={"latency": {"from_seconds": 0.1, "to_seconds": 0.6}})
        count = kills * ITEMS_PER_KILL
        batch_id = await _begin(instance, http, count)
        for _ in range(kills):
            await trio.sleep(rng.uniform(0.0, 3.0))
            await _kill_its_worker(instance)
        batch = await eventually(lambda: _ended(instance, http, batch_id), seconds=900)
        assert batch["status"] == "COMPLETED", batch
        assert batch["outcomes"]["SUCCEEDED"] == count, batch["outcomes"]
        await _require_each_charged_once(instance, http, count)
    print(f"kill -9 x {kills}: {count} items, each charged once")


async def _begin(instance: Instance, http: httpx2.AsyncClient, count: int) -> str:
    items = [
        {"type": "charge", "order_id": f"order-{number}", "amount": 100, "currency": "EUR", "token": "tok_paid"}
        for number in range(count)
    ]
    headers = {"authorization": f"Bearer {instance.demo.api_key}", "idempotency-key": uuid4().hex, "prefer": "respond-async"}
    body = {"items": items, "concurrency": 10, "deadline_seconds": 900}
    response = await http.post(f"{instance.api_url}/v1/batches", json=body, headers=headers)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def _kill_its_worker(instance: Instance) -> None:
    """Wait until a worker holds the batch and has written something, then kill all workers."""
    connection = await Connection.open(instance.database_url)
    try:

        async def is_held() -> bool:
            rows = await connection.query("SELECT 1 FROM batches WHERE status <> 'RUNNING' OR lease_until > now()")
            return bool(rows)

        await eventually(is_held, seconds=60)
    finally:
        connection.discard()
    victims = instance.supervisor.pids
    for victim in victims:
        os.kill(victim, signal.SIGKILL)

    async def replaced() -> bool:
        await trio.lowlevel.checkpoint()
        return not set(victims) & set(instance.supervisor.pids)

    await eventually(replaced, seconds=60)


async def _ended(instance: Instance, http: httpx2.AsyncClient, batch_id: str) -> dict[str, Any] | None:
    headers = {"authorization": f"Bearer {instance.demo.api_key}"}
    try:
        response = await http.get(f"{instance.api_url}/v1/batches/{batch_id}", headers=headers)
    except httpx2.TransportError:
        return None
    if response.status_code == 503:
        return None  # all workers are being replaced
    batch: dict[str, Any] = response.json()
    return batch if batch.get("status") not in (None, "RUNNING") else None


async def _require_each_charged_once(instance: Instance, http: httpx2.AsyncClient, count: int) -> None:
    """Checked against the PSP's own ledger and ours."""
    headers = {"authorization": f"Bearer {instance.demo.psp_api_key}"}
    charged: list[str] = []
    after = ""
    while True:
        url = f"{instance.running.psp_url}/v1/movements?limit=100&after={after}"
        page = (await http.get(url, headers=headers)).json()["data"]
        if not page:
            break
        after = page[-1]["id"]
        charged += [one["payment_id"] for one in page if one["type"] == "charge"]
    assert len(charged) == len(set(charged)) == count
    connection = await Connection.open(instance.database_url)
    try:
        assert await broken_promises(connection) == []
        rows = await connection.query(
            "SELECT count(DISTINCT order_id), count(*) FILTER (WHERE status = 'SUCCEEDED') FROM payment_requests"
        )
        assert rows == [(count, count)]
    finally:
        connection.discard()
