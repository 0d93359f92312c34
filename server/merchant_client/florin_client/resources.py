"""The documents of the API as frozen dataclasses. Amounts are integers in minor units: 1999 EUR is 19.99 €.

The API may add fields and values without a new version: unknown fields are ignored, and a status that is not listed here is kept
as the string that came.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

PaymentStatus = Literal["PENDING", "AUTHORIZED", "SUCCEEDED", "DECLINED", "EXPIRED", "CANCELED", "UNKNOWN"]
ItemStatus = Literal["SUCCEEDED", "DECLINED", "PENDING", "UNKNOWN", "FAILED", "NOT_STARTED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payment. `success` is 1 exactly in SUCCEEDED; `payment_url` is the page to send the customer to."""

    id: str
    object: Literal["payment"]
    status: PaymentStatus
    awaiting: Literal["customer", "provider"] | None
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
    metadata: Mapping[str, str]
    payment_url: str | None
    return_url: str | None
    decline_code: str | None
    did_check_again: bool
    late: bool
    risk: str | None
    expires_at: datetime
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One change of a payment."""

    version: int
    source: str
    kind: str
    from_status: str | None
    to_status: str
    code: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """A balance in one currency; `kind` is `available` or `pending`."""

    currency: str
    kind: str
    balance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """A line of the account statement. `amount_text` is the amount in the currency's own decimals."""

    seq: int
    created_at: datetime
    currency: str
    wallet: str
    reason: str
    amount: int
    balance: int
    amount_text: str
    payment_id: str | None
    transfer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """The result of one item of a batch. `item` is its number in the request, from 1."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch. `outcomes` counts its items by status; `resume_token` resumes the unfinished ones, once."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItemPage:
    """Results in the order in which they became known; the next ones come after `position`."""

    data: list[BatchItem]
    position: int
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport(Batch):
    """A batch that has ended, with a result for every item in the order of the request."""

    items: list[BatchItem]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event. `seq` numbers a merchant's events without a gap; `id` identifies repetitions; `data` is the object as it was."""

    id: str
    type: str
    seq: int
    api_version: str
    timestamp: datetime
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A named reader of events. Everything up to `acked_seq` has been handled."""

    name: str
    acked_seq: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTicket:
    """A ticket that opens the websocket stream once, from pages of one origin."""

    ticket: str
    url: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A webhook endpoint."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    description: str
    enabled: bool
    disabled_reason: Literal["merchant", "paused", "gone", "failing"] | None
    kept_from_seq: int | None
    failing_since: datetime | None
    mode: Literal["parallel", "ordered"]
    event_types: list[str]
    requests_per_second_max: int | None
    concurrency_max: int
    old_secret_until: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointWithSecret(Endpoint):
    """A webhook endpoint that was just created or rotated, with its secret, which is not shown again."""

    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a delivery. `response` is an excerpt of the reply without secrets."""

    number: int
    at: datetime
    status: int | None
    error: str | None
    milliseconds: int | None
    response: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentRequest:
    """The request of a delivery, without its signature and personal data."""

    method: Literal["POST"]
    url: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The delivery of an event to an endpoint. `DEAD`: given up, a dead letter."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryDetail(Delivery):
    """A delivery with its request and all attempts."""

    request: SentRequest
    log: list[Attempt]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that was given up."""

    endpoint_id: str
    seq: int
    event_id: str
    event_type: str
    attempts: int
    last_status: int | None
    last_error: str | None
    died_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key. `last_used_at` is exact to the minute; `replaced_by` is the key that a rotation has made."""

    id: str
    object: Literal["api_key"]
    name: str
    ends_in: str
    scopes: list[str]
    networks: list[str]
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    replaced_by: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyWithSecret(ApiKey):
    """An API key that was just made, with its secret, which is not shown again."""

    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """A change of the available balance that is neither a payment's nor a payout's, as its event tells it."""

    id: str
    object: Literal["adjustment"]
    amount: int
    currency: str
    account: Literal["goodwill", "correction", "reserve", "fees", "suspense"]
    reason: str
    payment_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Payout:
    """A payout to the merchant's bank, as its events tell it."""

    id: str
    object: Literal["payout"]
    status: Literal["PENDING", "SUCCEEDED", "FAILED"]
    amount: int
    currency: str
    reference: str | None
    failure: str | None
    created_at: datetime
    updated_at: datetime
