"""A shop's and an operator's use of payments, over the API and beside it."""

import time
from typing import Any
from uuid import uuid4

import httpx2
import msgspec
import trio
import trio.testing

from core.signing import sign_timestamped
from tests.support.florin import Florin, eventually, order


async def act(florin: Florin, payment: dict[str, Any], verb: str, *, key: str | None = None, **fields: Any) -> httpx2.Response:
    url = f"{florin.api_url}/v1/payments/{payment['id']}/{verb}"
    headers = {**florin.headers, "idempotency-key": key or uuid4().hex}
    return await florin.http.post(url, content=msgspec.json.encode(fields), headers=headers)


async def charge(florin: Florin, token: str = "tok_paid", **fields: Any) -> dict[str, Any]:
    response = await florin.post(order(confirm=True, token=token, **fields))
    assert response.status_code == 201, response.text
    payment: dict[str, Any] = response.json()
    return payment


async def set_merchant(florin: Florin, **columns: Any) -> None:
    """Change the merchant's settings, and wait until the worker's cache has expired."""
    for name, value in columns.items():
        await florin.connection.execute(f"UPDATE merchants SET {name} = $1", (value,))
    await trio.sleep(2.1)  # the lifetime of the cache in server.api.authentication


async def balances(florin: Florin) -> dict[str, int]:
    return {wallet["kind"]: wallet["balance"] for wallet in await florin.wallets()}


async def get(florin: Florin, path: str, **query: Any) -> Any:
    return await florin.http.get(f"{florin.api_url}/v1/{path}", params=query, headers=florin.headers)


async def until_chained(florin: Florin) -> None:
    async def chained() -> bool:
        rows = await florin.rows(
            """
            SELECT 1 FROM merchant_sequences s
             WHERE last_ledger_seq = (SELECT count(*) FROM ledger_chain c WHERE c.merchant_id = s.merchant_id)
            """
        )
        return bool(rows)

    assert await eventually(chained)


async def move_psp(florin: Florin, url: str) -> None:
    await florin.connection.execute("UPDATE psp_accounts SET base_url = $1", (url,))
    await florin.payments.psps.reload()


def captured_event(florin: Florin, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "sbe_1",
        "type": "intent.captured",
        "data": {
            "id": row["reference"],
            "status": "captured",
            "amount_minor": row["amount_minor"],
            "captured_minor": row["amount_minor"],
            "currency": row["currency"],
            "payment_url": row["payment_url"],
            "merchant_id": florin.demo.merchant_id,
            "payment_id": row["id"],
            "operation_id": row["operation_id"],
        },
    }


async def send_event(florin: Florin, event: dict[str, Any]) -> None:
    body = msgspec.json.encode(event)
    signature = sign_timestamped(florin.demo.psp_webhook_secret, timestamp=int(time.time()), body=body)
    url = florin.demo.psp_webhook_url(florin.api_url)
    response = await florin.http.post(url, content=body, headers={"sandbox-signature": signature})
    assert response.status_code == 200, response.text


def metrics(florin: Florin) -> str:
    return florin.payments.metrics.exposition().decode()


async def reference_of(florin: Florin, payment: dict[str, Any]) -> str:
    reference: str = (await florin.row(payment["id"]))["reference"]
    return reference
