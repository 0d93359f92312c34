"""What Florin answers, as types: the OpenAPI document describes replies by them and the merchant client reads replies into them.

A reader must not mind fields that it does not know: new ones are no new version.
"""

from server.resources.batches import Batch, BatchItem, BatchItemPage, BatchReport, ItemStatus
from server.resources.events import Consumer, Event, EventPage, StreamTicket
from server.resources.lists import Accepted, Page, Whole
from server.resources.payments import Payment, PaymentStatus, Refund
from server.resources.problems import ItemProblem, Problem
from server.resources.webhooks import Attempt, DeadLetter, Delivery, DeliveryDetail, Endpoint, EndpointState, SentRequest

__all__ = [
    "Accepted",
    "Attempt",
    "Batch",
    "BatchItem",
    "BatchItemPage",
    "BatchReport",
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
    "Problem",
    "Refund",
    "SentRequest",
    "StreamTicket",
    "Whole",
]
