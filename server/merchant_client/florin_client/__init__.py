"""The Python client of Florin, in two forms that differ only in `await`:

    with Florin(url, api_key) as florin:
        payment = florin.payments.create(amount=1990, currency="EUR", order_id="order-1")

    async with AsyncFlorin(url, api_key) as florin:
        payment = await florin.payments.create(amount=1990, currency="EUR", order_id="order-1")

`AsyncFlorin` runs on asyncio and on trio. Webhooks are checked by `verify_webhook`.
"""

from florin_client._async.client import AsyncFlorin
from florin_client._blocking.client import Florin
from florin_client.errors import ApiError, FlorinError, FlorinUnavailable, Gap, InvalidSignature, Unreadable
from florin_client.requests import EndpointChanges, NewCapture, NewCharge, NewItem, NewRefund, NewVerification
from florin_client.resources import (
    Adjustment,
    ApiKey,
    ApiKeyWithSecret,
    Attempt,
    Batch,
    BatchItem,
    BatchReport,
    Consumer,
    DeadLetter,
    Delivery,
    DeliveryDetail,
    Endpoint,
    EndpointWithSecret,
    Event,
    ItemStatus,
    Log,
    Movement,
    Payment,
    PaymentStatus,
    Payout,
    Refund,
    SentRequest,
    StreamTicket,
    Wallet,
)
from florin_client.webhooks import verify_webhook

__all__ = [
    "Adjustment",
    "ApiError",
    "ApiKey",
    "ApiKeyWithSecret",
    "AsyncFlorin",
    "Attempt",
    "Batch",
    "BatchItem",
    "BatchReport",
    "Consumer",
    "DeadLetter",
    "Delivery",
    "DeliveryDetail",
    "Endpoint",
    "EndpointChanges",
    "EndpointWithSecret",
    "Event",
    "Florin",
    "FlorinError",
    "FlorinUnavailable",
    "Gap",
    "InvalidSignature",
    "ItemStatus",
    "Log",
    "Movement",
    "NewCapture",
    "NewCharge",
    "NewItem",
    "NewRefund",
    "NewVerification",
    "Payment",
    "PaymentStatus",
    "Payout",
    "Refund",
    "SentRequest",
    "StreamTicket",
    "Unreadable",
    "Wallet",
    "verify_webhook",
]
