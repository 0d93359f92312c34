"""Webhook endpoints, their deliveries and dead letters."""

from collections.abc import AsyncGenerator, Sequence
from types import NoneType
from typing import Any, Literal, Unpack

from florin_client._async.pages import pages, whole
from florin_client._async.transport import AsyncTransport
from florin_client._requests import Deliveries, Request, checked_key, segment, without_none
from florin_client.requests import EndpointChanges
from florin_client.resources import DeadLetter, Delivery, DeliveryDetail, Endpoint, EndpointWithSecret, Event


class AsyncWebhookEndpoints:
    """`/v1/webhook-endpoints`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        *,
        url: str,
        mode: Literal["parallel", "ordered"] = "parallel",
        event_types: Sequence[str] = (),
        description: str = "",
        requests_per_second_max: int | None = None,
        concurrency_max: int | None = None,
        idempotency_key: str | None = None,
    ) -> EndpointWithSecret:
        """Add an endpoint and return it with its `secret`, which is not shown again.

        In mode `ordered` an event that fails holds back the later ones. `event_types` are names like `payment.succeeded` or
        `payment.*`; empty means all.
        """
        limits = without_none(requests_per_second_max=requests_per_second_max, concurrency_max=concurrency_max)
        body = {"url": url, "mode": mode, "event_types": [*event_types], "description": description, **limits}
        return await self._transport.call(
            Request("POST", "/v1/webhook-endpoints", EndpointWithSecret, body, checked_key(idempotency_key))
        )

    async def list(self) -> tuple[Endpoint, ...]:
        """Return all endpoints."""
        return await whole(self._transport, "/v1/webhook-endpoints", Endpoint)

    async def get(self, endpoint_id: str) -> Endpoint:
        """Return an endpoint."""
        return await self._transport.call(Request("GET", _path(endpoint_id), Endpoint))

    async def update(self, endpoint_id: str, **changes: Unpack[EndpointChanges]) -> Endpoint:
        """Change some fields of an endpoint, or enable or disable it."""
        return await self._transport.call(Request("PATCH", _path(endpoint_id), Endpoint, dict(changes)))

    async def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint. Its pending deliveries are dropped."""
        await self._transport.call(Request("DELETE", _path(endpoint_id), NoneType))

    async def rotate_secret(
        self, endpoint_id: str, *, overlap_seconds: int | None = None, idempotency_key: str | None = None
    ) -> EndpointWithSecret:
        """Replace the secret and return the new one. Both sign for `overlap_seconds`, a day unless given."""
        body = without_none(overlap_seconds=overlap_seconds)
        return await self._transport.call(
            Request("POST", f"{_path(endpoint_id)}/rotate-secret", EndpointWithSecret, body, checked_key(idempotency_key))
        )

    async def test(self, endpoint_id: str, *, idempotency_key: str | None = None) -> Event:
        """Send a test event and return it."""
        path = f"{_path(endpoint_id)}/test"
        return await self._transport.call(Request("POST", path, Event, idempotency_key=checked_key(idempotency_key)))

    async def replay(
        self, endpoint_id: str, *, from_seq: int, to_seq: int | None = None, idempotency_key: str | None = None
    ) -> int:
        """Send a range of events again, both ends included, and return the number of deliveries."""
        body = without_none(from_seq=from_seq, to_seq=to_seq)
        return await self._deliveries(f"{_path(endpoint_id)}/replay", body, idempotency_key)

    def deliveries(
        self, endpoint_id: str, *, state: Literal["PENDING", "DELIVERED", "DEAD", "DROPPED"] | None = None
    ) -> AsyncGenerator[Delivery, None]:
        """Yield the deliveries of an endpoint, the latest event first."""
        return pages(self._transport, f"{_path(endpoint_id)}/deliveries", Delivery, state=state)

    async def delivery(self, endpoint_id: str, seq: int) -> DeliveryDetail:
        """Return the delivery of one event, with its request and all attempts."""
        return await self._transport.call(Request("GET", f"{_path(endpoint_id)}/deliveries/{seq}", DeliveryDetail))

    async def resend(self, endpoint_id: str, seq: int, *, idempotency_key: str | None = None) -> int:
        """Send one event again at once, and return the number of deliveries."""
        return await self._deliveries(f"{_path(endpoint_id)}/deliveries/{seq}/resend", None, idempotency_key)

    async def _deliveries(self, path: str, body: dict[str, Any] | None, idempotency_key: str | None) -> int:
        reply = await self._transport.call(Request("POST", path, Deliveries, body, checked_key(idempotency_key)))
        return reply.deliveries


class AsyncDeadLetters:
    """`/v1/dead-letters`: the deliveries that were given up."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self, *, endpoint_id: str | None = None) -> AsyncGenerator[DeadLetter, None]:
        """Yield all dead letters, or those of one endpoint."""
        return pages(self._transport, "/v1/dead-letters", DeadLetter, endpoint_id=endpoint_id)

    async def retry(self, *, endpoint_id: str | None = None, seq: int | None = None, idempotency_key: str | None = None) -> int:
        """Try all of them again, those of an endpoint, or one by its event's number. Returns how many, at most 10,000."""
        return await self._select("retry", endpoint_id, seq, idempotency_key)

    async def drop(self, *, endpoint_id: str | None = None, seq: int | None = None, idempotency_key: str | None = None) -> int:
        """Drop all of them, those of an endpoint, or one by its event's number. Returns how many."""
        return await self._select("drop", endpoint_id, seq, idempotency_key)

    async def _select(self, verb: str, endpoint_id: str | None, seq: int | None, idempotency_key: str | None) -> int:
        body = without_none(endpoint_id=endpoint_id, seq=seq)
        reply = await self._transport.call(
            Request("POST", f"/v1/dead-letters/{verb}", Deliveries, body, checked_key(idempotency_key))
        )
        return reply.deliveries


def _path(endpoint_id: str) -> str:
    return f"/v1/webhook-endpoints/{segment(endpoint_id)}"
