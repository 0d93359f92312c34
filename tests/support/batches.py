"""A merchant's use of batches, over the API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import msgspec

from server.flows.contexts import Payments
from server.http.server.listener import bind
from server.process.worker import open_worker
from server.settings import Settings
from tests.support.florin import Florin, eventually

Items = list[dict[str, Any]]


async def post(
    florin: Florin, items: Items | bytes, *, key: str | None = None, path: str = "", prefer: str = "", **fields: Any
) -> httpx2.Response:
    """POST /v1/batches, or something below it."""
    headers = {**florin.headers, "idempotency-key": key or uuid4().hex, "prefer": prefer}
    content = items if isinstance(items, bytes) else msgspec.json.encode({"items": items, **fields})
    return await florin.http.post(f"{florin.api_url}/v1/batches{path}", content=content, headers=headers)


async def lines_of(florin: Florin, method: str, path: str, body: Any = None) -> Items:
    """A reply as NDJSON."""
    headers = {**florin.headers, "idempotency-key": uuid4().hex, "accept": "application/x-ndjson"}
    content = msgspec.json.encode(body) if body is not None else None
    async with florin.http.stream(method, f"{florin.api_url}/v1/batches{path}", content=content, headers=headers) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
        return [msgspec.json.decode(line) async for line in response.aiter_lines()]


async def read(florin: Florin, batch_id: str) -> dict[str, Any]:
    """GET /v1/batches/{id}."""
    found: dict[str, Any] = (await florin.http.get(f"{florin.api_url}/v1/batches/{batch_id}", headers=florin.headers)).json()
    return found


async def until_ended(florin: Florin, batch_id: str) -> dict[str, Any]:
    """Wait for a batch's end."""

    async def ended() -> dict[str, Any] | None:
        batch = await read(florin, batch_id)
        return batch if batch["status"] != "RUNNING" else None

    return await eventually(ended, seconds=60)


def charge(number: int, token: str = "tok_paid", **fields: Any) -> dict[str, Any]:
    """An item that charges 10 €."""
    return {"type": "charge", "order_id": f"order-{number}", "amount": 1_000, "currency": "EUR", "token": token, **fields}


def charges(count: int) -> Items:
    """That many items."""
    return [charge(number) for number in range(1, count + 1)]


def statuses(batch: dict[str, Any]) -> list[str]:
    """The status of each item."""
    return [one["status"] for one in batch["items"]]


async def charged_at_the_psp(florin: Florin) -> int:
    """The number of charges at the PSP, none of them twice."""
    headers = {"authorization": f"Bearer {florin.demo.psp_api_key}"}
    found: Items = []
    page: Items | None = None
    while page is None or page:
        after = found[-1]["id"] if found else ""
        page = (await florin.http.get(f"{florin.psp_url}/v1/movements?limit=100&after={after}", headers=headers)).json()["data"]
        found += page
    payments = [one["payment_id"] for one in found if one["type"] == "charge"]
    assert len(payments) == len(set(payments))
    return len(payments)


@asynccontextmanager
async def another_worker(florin: Florin, directory: Path) -> AsyncIterator[Payments]:
    """A second worker on the same database."""
    settings = Settings(database_url=florin.database_url, key_file=directory / "sealing.key", psp_seconds=3.0, drain_seconds=0.0)
    async with open_worker(settings, bind("127.0.0.1", 0)) as (contexts, _):
        yield contexts.payments
