"""What Florin answers, as types: the OpenAPI document describes replies by them and the merchant client reads replies into them.

The replies themselves are made from plain data (`core.events`); a test holds that they have exactly these fields. A reader must
not mind fields that it does not know: new ones are no new version.
"""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")

PaymentStatus = Literal["PENDING", "AUTHORIZED", "SUCCEEDED", "DECLINED", "EXPIRED", "CANCELED", "UNKNOWN"]


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment. Amounts are in minor units: 1999 EUR is 19.99 €. `success` is 1 exactly where it is SUCCEEDED."""

    id: str
    object: Literal["payment"]
    status: PaymentStatus
    success: Literal[0, 1]
    amount: int
    currency: str
    captured_amount: int
    refunded_amount: int
    disputed_amount: int
    fee_amount: int
    capture: Literal["automatic", "manual"]
    capture_before: datetime | None
    pending_operation: str | None
    order_id: str
    description: str | None
    statement_descriptor: str | None
    metadata: dict[str, str]
    payment_url: str | None
    return_url: str | None
    decline_code: str | None
    did_check_again: bool
    late: bool
    risk: str | None
    expires_at: datetime
    created_at: datetime
    updated_at: datetime


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """A refund of a payment."""

    id: str
    object: Literal["refund"]
    payment_id: str
    status: Literal["PENDING", "SUCCEEDED", "FAILED", "UNKNOWN"]
    amount: int
    currency: str
    reason: str | None
    failure_code: str | None
    created_at: datetime
    updated_at: datetime


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What happened. `seq` numbers a merchant's events without a gap; `id` tells repetitions; `data` is the object as it was
    then.
    """

    id: str
    type: str
    seq: int
    api_version: str
    timestamp: datetime
    data: dict[str, Any]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook endpoint. `secret` is there where it was just made; `event_types` empty means all."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    description: str
    enabled: bool
    disabled_reason: Literal["merchant", "gone", "failing"] | None
    failing_since: datetime | None
    mode: Literal["parallel", "ordered"]
    event_types: list[str]
    requests_per_second_max: int | None
    concurrency_max: int
    old_secret_until: datetime | None
    created_at: datetime
    secret: str | msgspec.UnsetType = msgspec.UNSET


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to deliver. `response` is an excerpt of the answer without secrets."""

    number: int
    at: datetime
    status: int | None
    error: str | None
    milliseconds: int | None
    response: str | None


class SentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent, without signature and personal data."""

    method: Literal["POST"]
    url: str
    headers: dict[str, str]
    body: dict[str, Any]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An event on its way to an endpoint. `DEAD`: given up, a dead letter."""

    endpoint_id: str
    seq: int
    event_id: str
    event_type: str
    state: Literal["PENDING", "DELIVERED", "DEAD", "DROPPED"]
    attempts: int
    next_attempt_at: datetime | None
    last_status: int | None
    last_error: str | None
    created_at: datetime
    updated_at: datetime


class DeliveryDetail(Delivery, frozen=True, kw_only=True):
    """A delivery with its request and all attempts."""

    request: SentRequest
    log: list[Attempt]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that was given up."""

    endpoint_id: str
    seq: int
    event_id: str
    event_type: str
    attempts: int
    last_status: int | None
    last_error: str | None
    died_at: datetime


ItemStatus = Literal["SUCCEEDED", "DECLINED", "PENDING", "UNKNOWN", "FAILED", "NOT_STARTED"]


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an item of a batch. `success` is 1 exactly where it is SUCCEEDED; `item` is its number in the request, from 1.

    UNKNOWN: the PSP was asked, or may have been; it is found out. FAILED: nothing was done, `code` and `detail` say why.
    """

    object: Literal["batch_item"]
    item: int
    position: int | None
    type: Literal["charge", "verify", "capture", "refund"] | None
    status: ItemStatus
    success: Literal[0, 1]
    order_id: str | None
    payment_id: str | None
    payment_status: PaymentStatus | None
    refund_id: str | None
    did_check_again: bool
    code: str | None
    detail: str | None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. `outcomes` counts its items by status, `unfinished` those that wait or are under way while it runs; with
    `resume_token` what is unfinished is resumed, once.
    """

    id: str
    object: Literal["batch"]
    status: Literal["RUNNING", "COMPLETED", "TIMED_OUT", "STOPPED"]
    count: int
    unfinished: int
    outcomes: dict[str, int]
    concurrency: int
    deadline_seconds: int
    deadline_at: datetime
    run: int
    resume_token: str | None
    created_at: datetime
    started_at: datetime
    finished_at: datetime | None


class BatchReport(Batch, frozen=True, kw_only=True):
    """A batch that has ended, with all its items."""

    items: list[BatchItem]


class BatchItemPage(msgspec.Struct, frozen=True, kw_only=True):
    """Results in the order in which they became known. Ask again with `after=position`."""

    data: list[BatchItem]
    position: int
    has_more: bool


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """A named reader of events; everything up to `acked_seq` has been dealt with."""

    name: str
    acked_seq: int
    created_at: datetime
    updated_at: datetime


class StreamTicket(msgspec.Struct, frozen=True, kw_only=True):
    """Opens the stream once, from pages of `origin`."""

    ticket: str
    url: str
    expires_at: datetime


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """How many deliveries will be made."""

    deliveries: int


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A page of a list; `next_cursor` asks for the next one."""

    data: list[T]
    has_more: bool
    next_cursor: str | None


class Whole(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A whole list."""

    data: list[T]


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events in order. Ask again with `after=seq`. `recovered`: these follow what you had without a gap."""

    data: list[Event]
    seq: int
    has_more: bool
    recovered: bool
    epoch: str


class ItemProblem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with an item of a batch."""

    item: int
    path: str
    code: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request failed (RFC 9457). `code` is stable; `path` names the field."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: Annotated[str, msgspec.Meta(description="name it when you ask for help")]
    path: str | msgspec.UnsetType = msgspec.UNSET
    decline_code: str | msgspec.UnsetType | None = msgspec.UNSET
    payment: Payment | msgspec.UnsetType = msgspec.UNSET
    refund: Refund | msgspec.UnsetType = msgspec.UNSET
    errors: list[ItemProblem] | msgspec.UnsetType = msgspec.UNSET
    resume_token: str | msgspec.UnsetType | None = msgspec.UNSET
    batch: Batch | msgspec.UnsetType = msgspec.UNSET
    items: list[BatchItem] | msgspec.UnsetType = msgspec.UNSET
