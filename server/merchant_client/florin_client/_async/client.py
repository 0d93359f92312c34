"""The client itself: one pool of connections, and the resources of the API as attributes."""

from types import TracebackType
from typing import Self

import httpx2

from florin_client._async.batches import AsyncBatches
from florin_client._async.events import AsyncConsumers, AsyncEvents
from florin_client._async.keys import AsyncApiKeys
from florin_client._async.ledger import AsyncLedger
from florin_client._async.payments import AsyncPayments
from florin_client._async.transport import AsyncTransport
from florin_client._async.webhooks import AsyncDeadLetters, AsyncWebhookEndpoints


class AsyncFlorin:
    """A client of the API: `async with AsyncFlorin(url, api_key) as florin`.

    Make one for the program, not one for each request: it keeps a pool of connections. Pass an httpx2 client as `http` for a
    proxy or certificates of your own. Every call raises `ApiError` when Florin refuses it and `FlorinUnavailable` when no reply
    came. A call that moves money takes an `idempotency_key`; give your own, such as your order's number, where your program may
    stop and run again. After a canceled or failed call, repeat it with the same key: it returns what has already been done.

    Raises ValueError for a URL or an API key that cannot be one.
    """

    def __init__(self, url: str, api_key: str, *, http: httpx2.AsyncClient | None = None) -> None:
        self._transport = transport = AsyncTransport(url, api_key, http)
        self.payments = AsyncPayments(transport)
        self.batches = AsyncBatches(transport)
        self.ledger = AsyncLedger(transport)
        self.events = AsyncEvents(transport)
        self.consumers = AsyncConsumers(transport)
        self.webhook_endpoints = AsyncWebhookEndpoints(transport)
        self.dead_letters = AsyncDeadLetters(transport)
        self.api_keys = AsyncApiKeys(transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()  # noqa: ASYNC102 - `close` shields itself

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()
