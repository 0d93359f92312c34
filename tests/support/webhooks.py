"""A merchant's use of webhook endpoints."""

from typing import Any
from uuid import uuid4

import httpx2

from tests.support.florin import Florin, eventually
from tests.support.receiver import Receiver


async def call(florin: Florin, method: str, path: str, body: Any = None, *, key: str | None = None) -> httpx2.Response:
    """Send a request as the demo merchant."""
    headers = {**florin.headers, "idempotency-key": key or uuid4().hex}
    return await florin.http.request(method, f"{florin.api_url}/v1/{path}", json=body, headers=headers)


async def add(florin: Florin, receiver: Receiver, **fields: Any) -> dict[str, Any]:
    """A new endpoint, with the demo shop's disabled."""
    await florin.connection.execute(
        "UPDATE webhook_endpoints SET enabled = false, disabled_reason = 'merchant' WHERE id = $1", (florin.demo.endpoint_id,)
    )
    response = await call(florin, "POST", "webhook-endpoints", {"url": receiver.url, **fields})
    assert response.status_code == 201, response.text
    endpoint: dict[str, Any] = response.json()
    return endpoint


async def until_delivered(florin: Florin) -> None:
    """Wait until no delivery is under way, and the results are written."""
    await eventually(lambda: florin.rows("SELECT 1 WHERE NOT EXISTS (SELECT FROM deliveries WHERE state = 'PENDING')"))
