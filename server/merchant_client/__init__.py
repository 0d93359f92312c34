"""The client that merchants use, in one of two ways that differ only in `await`:

    with Florin(url, key) as florin:                      async with AsyncFlorin(url, key) as florin:
        payment = florin.create(amount=1990, ...)             payment = await florin.create(amount=1990, ...)
        for event in florin.stream(consumer="books"):         async for event in florin.stream(consumer="books"):

`AsyncFlorin` runs on asyncio and on trio. Every call that changes something carries an idempotency key, drawn here unless given,
and is repeated with it where that is safe and may help; so a lost answer never charges twice. Nothing in the server imports this.
"""

from core.errors import InvalidSignature
from server.merchant_client.calls import ApiError, FlorinUnavailable, Gap
from server.merchant_client.client import AsyncFlorin, Florin
from server.merchant_client.webhooks import verify_webhook
from server.resources import Event, Payment, Refund

__all__ = [
    "ApiError",
    "AsyncFlorin",
    "Event",
    "Florin",
    "FlorinUnavailable",
    "Gap",
    "InvalidSignature",
    "Payment",
    "Refund",
    "verify_webhook",
]
