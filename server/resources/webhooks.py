"""Webhook endpoints, deliveries and dead letters as merchants see them."""

from typing import Any, Literal

import msgspec

from core.ids import ENDPOINT, EndpointId, encode_id
from server.resources.times import Time


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook endpoint. `secret` is present only if it was just created or rotated; empty `event_types` means all. While it is
    disabled or paused, `kept_from_seq` is the first event that it has not got.
    """

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    description: str
    enabled: bool
    disabled_reason: Literal["merchant", "paused", "gone", "failing"] | None
    kept_from_seq: int | None
    failing_since: Time | None
    mode: Literal["parallel", "ordered"]
    event_types: list[str]
    requests_per_second_max: int | None
    concurrency_max: int
    old_secret_until: Time | None
    created_at: Time
    secret: str | msgspec.UnsetType = msgspec.UNSET


class EndpointState(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook endpoint in the events about it. `disabled_reason` says why it gets no more events."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    enabled: bool
    disabled_reason: str | None

    @classmethod
    def of(cls, endpoint_id: EndpointId, *, url: str, reason: str | None) -> "EndpointState":
        """The document of an endpoint that is enabled, or disabled for a reason."""
        return cls(
            id=encode_id(ENDPOINT, endpoint_id),
            object="webhook_endpoint",
            url=url,
            enabled=reason is None,
            disabled_reason=reason,
        )


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a delivery. `response` is an excerpt of the reply without secrets."""

    number: int
    at: Time
    status: int | None
    error: str | None
    milliseconds: int | None
    response: str | None


class SentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request of a delivery, without its signature and personal data."""

    method: Literal["POST"]
    url: str
    headers: dict[str, str]
    body: dict[str, Any]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """The delivery of an event to an endpoint. `DEAD`: given up, a dead letter."""

    endpoint_id: str
    seq: int
    event_id: str
    event_type: str
    state: Literal["PENDING", "DELIVERED", "DEAD", "DROPPED"]
    attempts: int
    next_attempt_at: Time | None
    last_status: int | None
    last_error: str | None
    created_at: Time
    updated_at: Time


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
    died_at: Time
