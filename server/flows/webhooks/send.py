"""Makes one attempt to deliver an event to a merchant's endpoint, and updates the endpoint by its answer.

Requests are signed as Standard Webhooks 1.0 says, with the old secret too during a rotation. Invariants: an attempt ends within
`attempt_seconds`; a failure concerns this delivery only; only an excerpt of an answer is kept, without secrets; a failure of our
own does not count as an attempt; an endpoint that answers 410, or has had no success for `FAILING_DAYS_MAX` days, is disabled,
and its merchant is told.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
import structlog
import trio
from msgspec.structs import replace

from core.errors import DatabaseUnavailable, Overloaded
from core.events import ENDPOINT_DISABLED
from core.ids import EVENT, EndpointId, EventId, MerchantId, encode_id
from core.redaction import excerpt, redacted_url
from core.retry import DELIVERY_DELAYS_SECONDS, FAILING_DAYS_MAX, next_attempt_at, retry_after_seconds
from core.signing import StandardKey, sign_standard
from server.concurrency.single_flight_cache import SingleFlightCache, Validity
from server.db.events.events import Event, append_event
from server.db.pool import Pool
from server.db.webhooks.deliveries import ClaimedDelivery, DeliveryResult
from server.db.webhooks.endpoints import DisabledReason, Endpoint, disable_endpoint, find_endpoint, note_health
from server.flows.events.envelope import encode_event
from server.http.client.client import Client
from server.http.client.errors import ClientError
from server.http.client.response import Response
from server.resources import EndpointState
from server.sealing import Sealer
from server.uuid7 import uuid7

ENDPOINT_CACHE_SECONDS = 2.0
ENDPOINT_CACHE_MAX = 10_000
RESPONSE_BYTES_MAX = 16_384
GONE = 410
_log = structlog.get_logger()


class Attempted(msgspec.Struct, frozen=True):
    """The result of an attempt. `endpoint` is as it was known then. `wait_seconds`: the endpoint asked for a pause of that
    length. `was_slow`: it did not answer.
    """

    result: DeliveryResult
    endpoint: Endpoint | None = None
    wait_seconds: float = 0.0
    was_slow: bool = False


@dataclass(frozen=True, slots=True)
class NotMade:
    """Nothing was sent, for reasons of our own; this is not an attempt."""


@dataclass(slots=True)
class Destination:
    """An endpoint and the keys of its secrets, cached for a moment. `failing_since` is kept up to date here."""

    endpoint: Endpoint
    keys: list[StandardKey]
    failing_since: datetime | None


class Sender:
    """Makes attempts. `https` may call the public internet, `http` only what the settings allow
    (`server.flows.webhooks.destinations`).
    """

    def __init__(
        self,
        pool: Pool,
        https: Client,
        http: Client,
        sealer: Sealer,
        *,
        attempt_seconds: float,
        now: Callable[[], datetime],
        publish: Callable[[Event], None],
        validity: Validity | None = None,
    ) -> None:
        self._pool = pool
        self._https = https
        self._http = http
        self._sealer = sealer
        self.attempt_seconds = attempt_seconds
        self._now = now
        self._publish = publish
        # That an endpoint is disabled is read anew each time, because deliveries given up for that reason stay given up. Since
        # when one has been failing is changed by all workers, and is no setting; an old secret ends without a change.
        self._destinations = SingleFlightCache[tuple[MerchantId, EndpointId], Destination | DisabledReason](
            self._find,
            seconds=ENDPOINT_CACHE_SECONDS,
            most=ENDPOINT_CACHE_MAX,
            keeps=lambda found: isinstance(found, Destination),
            validity=validity,
            lasts=lambda found: isinstance(found, Destination) and found.failing_since is None and len(found.keys) == 1,
        )

    async def attempt(self, claimed: ClaimedDelivery, *, too_old_at: float, now: float) -> Attempted | NotMade:
        """Make one attempt, unless it is too late for one. `now` is trio's time. Raises nothing but cancellation."""
        began = now
        try:
            destination = self._destinations.get((claimed.event.merchant_id, claimed.endpoint_id), now=now)
            if destination is None:
                destination = await self.destination(claimed.event.merchant_id, claimed.endpoint_id)
                now = trio.current_time()
            if now >= too_old_at:
                return NotMade()
            return await self._attempt(claimed, destination, began, now)
        except (DatabaseUnavailable, Overloaded) as error:  # of the first step: the others handle it themselves
            _log.warning("a delivery cannot be attempted yet", error=str(error))
            return NotMade()
        except Exception as error:  # noqa: BLE001 - a message that breaks its sender must use up its attempts, not its worker
            _log.exception("a delivery failed unexpectedly", event_id=encode_id(EVENT, claimed.event.id))
            return self._failed(claimed, began, error=f"{type(error).__name__} while sending")

    def known(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> Destination | None:
        """The endpoint as last read, or None if it was never read or is disabled."""
        destination = self._destinations.last((merchant_id, endpoint_id))
        return destination if isinstance(destination, Destination) else None

    async def destination(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> Destination | DisabledReason:
        """Return the address and secrets of the endpoint, or why nothing may be sent to it."""
        key = (merchant_id, endpoint_id)
        return self._destinations.get(key, now=trio.current_time()) or await self._destinations.look_up(key)

    async def _find(self, key: tuple[MerchantId, EndpointId]) -> Destination | DisabledReason:
        async with self._pool.connection() as connection:
            endpoint = await find_endpoint(connection, *key)
        if endpoint is None:
            return DisabledReason.DELETED
        if not endpoint.enabled:
            return endpoint.disabled_reason or DisabledReason.MERCHANT
        return Destination(endpoint, signing_keys(self._sealer, endpoint, now=self._now()), endpoint.failing_since)

    async def _attempt(
        self, claimed: ClaimedDelivery, destination: Destination | DisabledReason, began: float, asked_at: float
    ) -> Attempted:
        if isinstance(destination, DisabledReason):
            is_dropped = destination is DisabledReason.DELETED
            error = "the endpoint is deleted" if is_dropped else "the endpoint is disabled"
            return Attempted(
                DeliveryResult(id=uuid7(), claimed=claimed, delivered=False, is_dropped=is_dropped, error=error, at=self._now())
            )
        url = destination.endpoint.url
        client = self._http if url[:5].lower() == "http:" else self._https
        body = encode_event(claimed.event)
        headers = signed_headers(destination.keys, claimed.event, body, now=self._now())
        try:
            # Merchants recognize repetitions by the message's id.
            response = await client.request(
                "POST",
                url,
                headers=headers,
                body=body,
                idempotent=True,
                total_seconds=self.attempt_seconds,
                asker=claimed.event.merchant_id,
            )
        except ClientError as error:
            is_late = trio.current_time() - asked_at >= self.attempt_seconds
            said = f"no answer within {self.attempt_seconds:g} s" if is_late else str(error)
            await self._note_failure(destination)
            return self._failed(claimed, began, error=said, was_slow=True)
        if 200 <= response.status < 300:
            # After a failure, which another worker may have noted, what is cached here may not say so.
            if destination.failing_since is not None or claimed.attempt > 1:
                await self._note(destination, None)
            took = _milliseconds(began)
            return Attempted(
                DeliveryResult(claimed=claimed, delivered=True, status=response.status, at=self._now(), milliseconds=took),
                destination.endpoint,
            )
        return await self._refused(claimed, destination, response, began)

    async def _refused(self, claimed: ClaimedDelivery, destination: Destination, response: Response, began: float) -> Attempted:
        status = response.status
        error = f"the endpoint answered {status}"
        if 300 <= status < 400:
            error += "; redirects are not followed"
        if status == GONE:
            await self._disable(destination, DisabledReason.GONE)
            attempted = self._failed(claimed, began, error=f"{error}; it is disabled", response=response)
            return replace(attempted, result=replace(attempted.result, retry_seconds=None))
        await self._note_failure(destination)
        header = response.header(b"retry-after") if status in (429, 503) else None
        asked = retry_after_seconds(header.decode("latin-1"), now=self._now()) if header is not None else None
        wait_seconds = asked if asked is not None else (1.0 if status == 429 else 0.0)
        return self._failed(claimed, began, error=error, response=response, wait_seconds=wait_seconds)

    def _failed(
        self,
        claimed: ClaimedDelivery,
        began: float,
        *,
        error: str,
        response: Response | None = None,
        wait_seconds: float = 0.0,
        was_slow: bool = False,
    ) -> Attempted:
        now = self._now()
        jitter = random.random()  # noqa: S311 - spreads load, guards nothing
        at = next_attempt_at(DELIVERY_DELAYS_SECONDS, attempts=claimed.attempt, now=now, jitter=jitter)
        result = DeliveryResult(
            id=uuid7(),
            claimed=claimed,
            delivered=False,
            retry_seconds=max((at - now).total_seconds(), wait_seconds) if at else None,
            status=response.status if response is not None else None,
            error=error[:500],
            response=_excerpt(response) if response is not None else None,
            at=now,
            milliseconds=_milliseconds(began),
        )
        return Attempted(result, wait_seconds=wait_seconds, was_slow=was_slow)

    async def _note_failure(self, destination: Destination) -> None:
        """Record that the endpoint is failing, and disable it if it has been failing for too long."""
        now = self._now()
        since = destination.failing_since
        if since is None:
            since = await self._note(destination, now)
        if since is not None and now - since >= timedelta(days=FAILING_DAYS_MAX):
            await self._disable(destination, DisabledReason.FAILING)

    async def _note(self, destination: Destination, failing_since: datetime | None) -> datetime | None:
        """Record the time since which the endpoint has been failing, and return the one that counts for all workers. What cannot
        be written now is written by a later attempt.
        """
        endpoint = destination.endpoint
        before, destination.failing_since = destination.failing_since, failing_since  # many attempts end at once
        try:
            async with self._pool.connection() as connection:
                since = await note_health(connection, endpoint.merchant_id, endpoint.id, failing_since=failing_since)
        except (DatabaseUnavailable, Overloaded):
            since = before
        destination.failing_since = since
        return since

    async def _disable(self, destination: Destination, reason: DisabledReason) -> None:
        """Disable the endpoint and tell its merchant, by other endpoints and on the stream."""
        self._destinations.forget((destination.endpoint.merchant_id, destination.endpoint.id))
        try:
            await self._write_disabled(destination.endpoint, reason)
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("an endpoint could not be disabled yet", error=str(error))

    async def _write_disabled(self, endpoint: Endpoint, reason: DisabledReason) -> None:
        now = self._now()
        async with self._pool.connection() as connection, connection.atomic():
            if not await disable_endpoint(connection, endpoint.merchant_id, endpoint.id, reason, now=now, url=endpoint.url):
                return
            event = await append_event(
                connection,
                endpoint.merchant_id,
                EventId(uuid7()),
                event_type=ENDPOINT_DISABLED,
                data=msgspec.json.encode(EndpointState.of(endpoint.id, url=redacted_url(endpoint.url), reason=reason)),
                now=now,
            )
        self._publish(event)


def signing_keys(sealer: Sealer, endpoint: Endpoint, *, now: datetime) -> list[StandardKey]:
    """The keys of an endpoint: of its secret, and of the previous one while that is valid."""
    sealed = [endpoint.sealed_secret]
    if endpoint.sealed_old_secret is not None and endpoint.old_secret_until is not None and now < endpoint.old_secret_until:
        sealed.append(endpoint.sealed_old_secret)
    return [
        StandardKey(sealer.open(one, table="webhook_endpoints", row=endpoint.id, merchant=endpoint.merchant_id)) for one in sealed
    ]


def signed_headers(keys: list[StandardKey], event: Event, body: bytes, *, now: datetime) -> list[tuple[str, str]]:
    """The header fields of a delivery."""
    message_id = encode_id(EVENT, event.id)
    timestamp = int(now.timestamp())
    return [
        ("content-type", "application/json"),
        ("user-agent", "Florin-Webhooks/1"),
        ("webhook-id", message_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", sign_standard(keys, message_id=message_id, timestamp=timestamp, body=body)),
    ]


def _milliseconds(began: float) -> int:
    return int((trio.current_time() - began) * 1_000)


def _excerpt(response: Response) -> str | None:
    """The excerpt of an answer that is kept; usually nothing, or a word."""
    if not response.body:
        return None
    return excerpt(response.body[:4_096].decode("utf-8", "replace"))
