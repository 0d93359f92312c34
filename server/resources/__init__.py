"""The documents of the API as types. The OpenAPI document describes replies by them.

Clients must ignore unknown fields: adding a field does not make a new version.
"""

from server.resources.api_keys import ApiKey
from server.resources.batches import Batch, BatchItem, BatchItemPage, BatchReport, BatchState, ItemStatus
from server.resources.events import Consumer, Event, EventPage, StreamTicket
from server.resources.ledger import Adjustment, Payout
from server.resources.lists import Accepted, Page, Whole
from server.resources.payments import Payment, PaymentStatus, Refund
from server.resources.problems import ItemProblem, Problem
from server.resources.webhooks import Attempt, DeadLetter, Delivery, DeliveryDetail, Endpoint, EndpointState, SentRequest

__all__ = [
    "Accepted",
    "Adjustment",
    "ApiKey",
    "Attempt",
    "Batch",
    "BatchItem",
    "BatchItemPage",
    "BatchReport",
    "BatchState",
    "Consumer",
    "DeadLetter",
    "Delivery",
    "DeliveryDetail",
    "Endpoint",
    "EndpointState",
    "Event",
    "EventPage",
    "ItemProblem",
    "ItemStatus",
    "Page",
    "Payment",
    "PaymentStatus",
    "Payout",
    "Problem",
    "Refund",
    "SentRequest",
    "StreamTicket",
    "Whole",
]
