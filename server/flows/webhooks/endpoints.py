"""Webhook endpoints: creating, changing and testing them, rotating their secrets, and sending events again.

Invariants: the destination was checked by `server.flows.webhooks.destinations`; the secret is stored sealed; a rotated secret
stays valid for as long as the merchant asked; a disabled endpoint gets nothing, and its waiting deliveries become dead letters.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import msgspec

from core.errors import Conflict, NotFound, Unprocessable
from core.events import ENDPOINT_TEST
from core.ids import EndpointId, EventId, MerchantId
from core.redaction import redacted_url
from core.signing import standard_secret
from server.db.connection import Connection
from server.db.events.events import Event, append_event, find_recent, find_sequence
from server.db.merchants.merchants import Merchant
from server.db.webhooks.delivery_log import REPLAY_MAX, replay, resend, send_kept
from server.db.webhooks.endpoints import (
    DisabledReason,
    Endpoint,
    EndpointMode,
    add_endpoint,
    change_endpoint,
    count_endpoints,
    disable_endpoint,
    find_endpoint,
    list_endpoints,
    release_holds,
    rotate_secret,
)
from server.flows.contexts import Webhooks
from server.resources import EndpointState
from server.sealing import Sealer
from server.uuid7 import drawn_at

ENDPOINTS_MAX = 16
SECRET_BYTES = 32
PRECISION = timedelta(milliseconds=1)
"""The precision of the time in a UUIDv7, which is compared with the time of the endpoint's last change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEndpoint:
    """A validated request for an endpoint."""

    url: str
    mode: EndpointMode = EndpointMode.PARALLEL
    event_types: tuple[str, ...] | None = None
    description: str = ""
    requests_per_second_max: int | None = None
    concurrency_max: int = 32


def generate_secret() -> str:
    """Draw a new signing secret."""
    return standard_secret(secrets.token_bytes(SECRET_BYTES))


def seal_secret(sealer: Sealer, secret: str, *, merchant_id: MerchantId, endpoint_id: EndpointId) -> bytes:
    """Seal an endpoint's secret for storage."""
    return sealer.seal(secret, table="webhook_endpoints", row=endpoint_id, merchant=merchant_id)


async def make(context: Webhooks, merchant: Merchant, wanted: NewEndpoint, made: UUID) -> tuple[Endpoint, str]:
    """Create an endpoint with that id, or return the existing one, with its secret. Raises `Unprocessable`, `Conflict`."""
    endpoint_id = EndpointId(made)
    async with context.pool.connection() as connection:
        stored = await find_endpoint(connection, merchant.id, endpoint_id)
    if stored is None:
        await context.destinations.require(wanted.url, is_live=merchant.mode == "live", of=merchant.id)
        async with context.pool.connection() as connection, connection.atomic():
            if await count_endpoints(connection, merchant.id) >= ENDPOINTS_MAX:
                raise Conflict(f"a merchant has at most {ENDPOINTS_MAX} webhook endpoints", code="too_many_endpoints")
            stored = await add_endpoint(connection, _new(context, merchant.id, endpoint_id, wanted))
        if stored is None:
            raise Conflict("the endpoint that this key created was deleted: use a new key", code="endpoint_deleted")
    return stored, _secret_of(context, stored)


def _new(context: Webhooks, merchant_id: MerchantId, endpoint_id: EndpointId, wanted: NewEndpoint) -> Endpoint:
    now = context.now()
    return Endpoint(
        id=endpoint_id,
        merchant_id=merchant_id,
        url=wanted.url,
        sealed_secret=seal_secret(context.sealer, generate_secret(), merchant_id=merchant_id, endpoint_id=endpoint_id),
        created_at=now,
        updated_at=now,
        mode=wanted.mode,
        event_types=wanted.event_types,
        description=wanted.description,
        requests_per_second_max=wanted.requests_per_second_max,
        concurrency_max=wanted.concurrency_max,
    )


def _secret_of(context: Webhooks, endpoint: Endpoint) -> str:
    return context.sealer.open(endpoint.sealed_secret, table="webhook_endpoints", row=endpoint.id, merchant=endpoint.merchant_id)


async def listed(context: Webhooks, merchant_id: MerchantId) -> list[Endpoint]:
    """A merchant's endpoints, oldest first."""
    async with context.pool.connection() as connection:
        return await list_endpoints(connection, merchant_id)


async def find(context: Webhooks, merchant_id: MerchantId, endpoint_id: EndpointId) -> Endpoint:
    """Return one endpoint. Raises `NotFound`."""
    async with context.pool.connection() as connection:
        endpoint = await find_endpoint(connection, merchant_id, endpoint_id)
    if endpoint is None:
        raise NotFound("no such webhook endpoint")
    return endpoint


KEPT_MAX = 100_000
"""The most events that are sent together once an endpoint is enabled again."""


async def change(
    context: Webhooks,
    merchant: Merchant,
    endpoint_id: EndpointId,
    edit: Callable[[Endpoint], Endpoint],
    *,
    sends_missed: bool | None = None,
) -> Endpoint:
    """Change an endpoint. `sends_missed`: whether the events that were kept for it while it was disabled or paused are sent once
    it is enabled; by default those of a paused one. Raises `NotFound`, `Unprocessable`.
    """
    before = await find(context, merchant.id, endpoint_id)
    url = edit(before).url
    if url != before.url:
        await context.destinations.require(url, is_live=merchant.mode == "live", of=merchant.id)
    async with context.pool.connection() as connection, connection.atomic():
        endpoint = await _locked(connection, merchant.id, endpoint_id)
        was_paused = endpoint.disabled_reason is DisabledReason.PAUSED
        sends = endpoint.enabled or (was_paused if sends_missed is None else sends_missed)
        changed = await change_endpoint(connection, edit(endpoint), sends_kept=sends, now=context.now())
        if changed.enabled and not endpoint.enabled and endpoint.kept_from_seq is not None and sends:
            last_seq = (await find_sequence(connection, merchant.id)).last_seq
            if last_seq - endpoint.kept_from_seq >= KEPT_MAX:
                detail = f"more than {KEPT_MAX:,} events were kept: give missed: skip, and replay them in ranges from {{}}"
                raise Conflict(detail.format(endpoint.kept_from_seq), code="too_many_missed")
            await send_kept(connection, merchant.id, endpoint_id, from_seq=endpoint.kept_from_seq)
    return changed


async def _locked(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId) -> Endpoint:
    endpoint = await find_endpoint(connection, merchant_id, endpoint_id, for_update=True)
    if endpoint is None:
        raise NotFound("no such webhook endpoint")
    return endpoint


async def remove(context: Webhooks, merchant_id: MerchantId, endpoint_id: EndpointId) -> None:
    """Delete an endpoint and drop its waiting deliveries. Raises `NotFound`."""
    async with context.pool.connection() as connection:
        reason = DisabledReason.DELETED
        if not await disable_endpoint(connection, merchant_id, endpoint_id, reason, now=context.now()):
            raise NotFound("no such webhook endpoint")


async def rotate(
    context: Webhooks, merchant_id: MerchantId, endpoint_id: EndpointId, made: UUID, *, overlap_seconds: int
) -> tuple[Endpoint, str]:
    """Replace the secret and return it with the endpoint. The old one stays valid for that many seconds.

    The secret belongs to `made`, so repeating the request rotates nothing twice. Raises `NotFound`, and `Conflict` if the
    endpoint was changed after this request was first made, or if the previous secret is still valid and `overlap_seconds` is not
    0.
    """
    secret = standard_secret(context.sealer.derive(b"webhook secret", made))
    async with context.pool.connection() as connection, connection.atomic():
        endpoint = await _locked(connection, merchant_id, endpoint_id)
        if secret == _secret_of(context, endpoint):
            return endpoint, secret
        now = context.now()
        is_promised = endpoint.old_secret_until is not None and endpoint.old_secret_until > now
        if drawn_at(made) < endpoint.updated_at - PRECISION:
            raise Conflict("the endpoint was changed since then: rotate with a new key", code="endpoint_changed")
        if is_promised and overlap_seconds:
            detail = (
                f"the previous secret is valid until {endpoint.old_secret_until}: rotate then, or at once with overlap_seconds 0"
            )
            raise Conflict(detail, code="secret_rotating")
        sealed = seal_secret(context.sealer, secret, merchant_id=merchant_id, endpoint_id=endpoint_id)
        until = now + timedelta(seconds=overlap_seconds)
        return await rotate_secret(connection, endpoint, sealed_secret=sealed, old_until=until, now=now), secret


async def test(context: Webhooks, merchant_id: MerchantId, endpoint_id: EndpointId, made: UUID) -> Event:
    """Send a test event through the whole delivery path. Raises `NotFound`, `Conflict`."""
    endpoint = await _require_enabled(context, merchant_id, endpoint_id)
    event_id = EventId(made)
    async with context.pool.connection() as connection:
        event = await find_recent(connection, merchant_id, event_id)
        if event is None:
            event = await append_event(
                connection,
                merchant_id,
                event_id,
                event_type=ENDPOINT_TEST,
                data=msgspec.json.encode(EndpointState.of(endpoint_id, url=redacted_url(endpoint.url), reason=None)),
                now=context.now(),
                only_to=endpoint_id,
            )
    context.feeds.publish(event)
    return event


async def send_again(context: Webhooks, merchant_id: MerchantId, endpoint_id: EndpointId, seq: int) -> None:
    """Send one event again, now. Raises `NotFound`, `Conflict`."""
    await _require_enabled(context, merchant_id, endpoint_id)
    async with context.pool.connection() as connection:
        if not await resend(connection, merchant_id, endpoint_id, seq):
            raise NotFound("no such event")
        await release_holds(connection, merchant_id, endpoint_id)


async def send_range_again(
    context: Webhooks, merchant_id: MerchantId, endpoint_id: EndpointId, *, from_seq: int, to_seq: int | None
) -> int:
    """Send a range of events again. Returns their number. Raises `NotFound`, `Conflict`, `Unprocessable`."""
    await _require_enabled(context, merchant_id, endpoint_id)
    async with context.pool.connection() as connection:
        last_seq = (await find_sequence(connection, merchant_id)).last_seq
        end_seq = min(to_seq, last_seq) if to_seq is not None else last_seq
        if end_seq - from_seq >= REPLAY_MAX:
            raise Unprocessable(f"a replay may have at most {REPLAY_MAX} events", code="range_too_large", path="$.to_seq")
        await release_holds(connection, merchant_id, endpoint_id)
        return await replay(connection, merchant_id, endpoint_id, from_seq=from_seq, to_seq=end_seq)


async def _require_enabled(context: Webhooks, merchant_id: MerchantId, endpoint_id: EndpointId) -> Endpoint:
    endpoint = await find(context, merchant_id, endpoint_id)
    if not endpoint.enabled:
        raise Conflict("the endpoint is disabled: enable it first", code="endpoint_disabled")
    return endpoint
