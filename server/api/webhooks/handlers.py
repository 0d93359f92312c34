"""`/v1/webhook-endpoints` and `/v1/dead-letters`: endpoints, their deliveries, and sending events again."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from uuid import UUID

import msgspec

from core.errors import InvalidId, NotFound, Unprocessable
from core.events import parse_types
from core.idempotency import Reply, fingerprint
from core.ids import ENDPOINT, EVENT, EndpointId, decode_id, encode_id
from core.redaction import REDACTED, redacted_data, redacted_url
from server import resources
from server.api.parsing import canonical, decode_seq, read_key, read_limit, read_query, read_seq, reply_within_seconds
from server.api.replies import ACCEPTED, CREATED, JSON, OK, locations, send_decision
from server.api.routing import Call
from server.api.webhooks.bodies import (
    ChangeEndpoint,
    read_change_endpoint,
    read_create_endpoint,
    read_letters,
    read_replay,
    read_rotate,
)
from server.db.events.events import find_event
from server.db.merchants.audit import Act
from server.db.webhooks.dead_letters import Letters, list_dead_letters
from server.db.webhooks.delivery_log import DeliveryRow, FailedAttempt, find_delivery, list_deliveries, list_failed_attempts
from server.db.webhooks.endpoints import DisabledReason, Endpoint, EndpointMode
from server.flows.contexts import Webhooks
from server.flows.events.envelope import encode_event
from server.flows.idempotency import Request, once
from server.flows.webhooks import dead_letters, endpoints
from server.flows.webhooks.dead_letters import Verb
from server.http.asgi import respond

_STATES = ("PENDING", "DELIVERED", "DEAD", "DROPPED")


class EndpointsApi:
    """The handlers."""

    def __init__(self, context: Webhooks) -> None:
        self._context = context

    async def create(self, call: Call) -> None:
        """`POST /v1/webhook-endpoints`. Only this reply and its replays show the secret."""
        wanted = read_create_endpoint(call.body)
        new = endpoints.NewEndpoint(
            url=wanted.url,
            mode=EndpointMode(wanted.mode),
            event_types=parse_types(wanted.event_types, path="$.event_types"),
            description=wanted.description,
            requests_per_second_max=wanted.requests_per_second_max,
            concurrency_max=wanted.concurrency_max,
        )

        async def work(made: UUID) -> bytes:
            endpoint, secret = await endpoints.make(self._context, call.merchant, new, made)
            return msgspec.json.encode(endpoint_shape(endpoint, secret=secret))

        await self._once(call, CREATED, wanted, work, at="/v1/webhook-endpoints")

    async def list_all(self, call: Call) -> None:
        """`GET /v1/webhook-endpoints`."""
        found = await endpoints.listed(self._context, call.merchant.id)
        await _send(call, {"data": [endpoint_shape(one) for one in found]})

    async def read(self, call: Call, endpoint_text: str) -> None:
        """`GET /v1/webhook-endpoints/{id}`."""
        endpoint = await endpoints.find(self._context, call.merchant.id, decode_endpoint_id(endpoint_text))
        await _send(call, endpoint_shape(endpoint))

    async def change(self, call: Call, endpoint_text: str) -> None:
        """`PATCH /v1/webhook-endpoints/{id}`."""
        wanted = read_change_endpoint(call.body)
        endpoint = await endpoints.change(
            self._context,
            call.merchant,
            decode_endpoint_id(endpoint_text),
            partial(_changed, wanted=wanted),
            sends_missed=None if wanted.missed is msgspec.UNSET else wanted.missed == "send",
        )
        await _send(call, endpoint_shape(endpoint))

    async def remove(self, call: Call, endpoint_text: str) -> None:
        """`DELETE /v1/webhook-endpoints/{id}`."""
        await endpoints.remove(self._context, call.merchant.id, decode_endpoint_id(endpoint_text))
        await respond(call.send, 204, b"", content_type=JSON)

    async def rotate(self, call: Call, endpoint_text: str) -> None:
        """`POST /v1/webhook-endpoints/{id}/rotate-secret`."""
        endpoint_id, wanted = decode_endpoint_id(endpoint_text), read_rotate(call.body)

        async def work(made: UUID) -> bytes:
            endpoint, secret = await endpoints.rotate(
                self._context, call.merchant.id, endpoint_id, made, overlap_seconds=wanted.overlap_seconds
            )
            return msgspec.json.encode(endpoint_shape(endpoint, secret=secret))

        await self._once(call, OK, wanted, work, about=endpoint_id)

    async def test(self, call: Call, endpoint_text: str) -> None:
        """`POST /v1/webhook-endpoints/{id}/test`."""
        endpoint_id = decode_endpoint_id(endpoint_text)

        async def work(made: UUID) -> bytes:
            event = await endpoints.test(self._context, call.merchant.id, endpoint_id, made)
            return encode_event(event)

        await self._once(call, ACCEPTED, None, work, about=endpoint_id)

    async def replay(self, call: Call, endpoint_text: str) -> None:
        """`POST /v1/webhook-endpoints/{id}/replay`."""
        endpoint_id, wanted = decode_endpoint_id(endpoint_text), read_replay(call.body)

        async def work(_: UUID) -> bytes:
            sent = await endpoints.send_range_again(
                self._context, call.merchant.id, endpoint_id, from_seq=wanted.from_seq, to_seq=wanted.to_seq
            )
            return msgspec.json.encode(resources.Accepted(deliveries=sent))

        await self._once(call, ACCEPTED, wanted, work, about=endpoint_id)

    async def deliveries(self, call: Call, endpoint_text: str) -> None:
        """`GET /v1/webhook-endpoints/{id}/deliveries`: the latest event first, a page at a time."""
        fields = read_query(call.scope, "state", "cursor", "limit")
        endpoint_id, limit, state = decode_endpoint_id(endpoint_text), read_limit(fields), fields.get("state")
        if state is not None and state not in _STATES:
            raise Unprocessable(f"state must be one of {', '.join(_STATES)}", code="invalid_query", path="state")
        before = read_seq(fields, "cursor")
        await endpoints.find(self._context, call.merchant.id, endpoint_id)
        async with self._context.pool.connection() as connection:
            found = await list_deliveries(
                connection, call.merchant.id, endpoint_id, state=state, before_seq=before, limit=limit + 1
            )
        following = str(found[limit - 1].seq) if len(found) > limit else None
        page = {
            "data": [_delivery_fields(one) for one in found[:limit]],
            "has_more": following is not None,
            "next_cursor": following,
        }
        await _send(call, page)

    async def delivery(self, call: Call, endpoint_text: str, seq_text: str) -> None:
        """`GET /v1/webhook-endpoints/{id}/deliveries/{seq}`: with the request and every attempt."""
        endpoint_id, seq, merchant_id = decode_endpoint_id(endpoint_text), decode_seq(seq_text), call.merchant.id
        endpoint = await endpoints.find(self._context, merchant_id, endpoint_id)
        async with self._context.pool.connection() as connection:
            row = await find_delivery(connection, merchant_id, endpoint_id, seq)
            event = await find_event(connection, merchant_id, seq)
            failed = await list_failed_attempts(connection, merchant_id, endpoint_id, seq)
        if row is None or event is None:
            raise NotFound("no such delivery")
        body = msgspec.json.decode(encode_event(event))
        request = {
            "method": "POST",
            "url": redacted_url(endpoint.url),
            "headers": {"webhook-id": encode_id(EVENT, event.id), "webhook-signature": f"v1,{REDACTED}"},
            "body": {**body, "data": redacted_data(body["data"])},
        }
        await _send(call, {**_delivery_fields(row), "request": request, "log": _log(row, failed)})

    async def resend(self, call: Call, endpoint_text: str, seq_text: str) -> None:
        """`POST /v1/webhook-endpoints/{id}/deliveries/{seq}/resend`: now, out of turn."""
        endpoint_id, seq = decode_endpoint_id(endpoint_text), decode_seq(seq_text)

        async def work(_: UUID) -> bytes:
            await endpoints.send_again(self._context, call.merchant.id, endpoint_id, seq)
            return msgspec.json.encode(resources.Accepted(deliveries=1))

        await self._once(call, ACCEPTED, None, work, about=endpoint_id)

    async def dead_letters(self, call: Call) -> None:
        """`GET /v1/dead-letters`: deliveries that were given up."""
        fields = read_query(call.scope, "endpoint_id", "cursor", "limit")
        limit = read_limit(fields)
        endpoint_id = decode_endpoint_id(fields["endpoint_id"]) if "endpoint_id" in fields else None
        after = _decode_letter(fields["cursor"]) if "cursor" in fields else None
        async with self._context.pool.connection() as connection:
            letters = Letters(call.merchant.id, endpoint_id)
            found = await list_dead_letters(connection, letters, after=after, limit=limit + 1)
        last = found[limit - 1] if len(found) > limit else None
        page = {
            "data": [dead_letters.letter_data(one) for one in found[:limit]],
            "has_more": last is not None,
            "next_cursor": f"{last.endpoint_id.hex}-{last.seq}" if last is not None else None,
        }
        await _send(call, page)

    async def retry_letters(self, call: Call) -> None:
        """`POST /v1/dead-letters/retry`. The attempts are spread out in time."""
        await self._for_letters(call, "retry", dead_letters.retry)

    async def drop_letters(self, call: Call) -> None:
        """`POST /v1/dead-letters/drop`."""
        await self._for_letters(call, "drop", dead_letters.drop)

    async def _for_letters(self, call: Call, verb: str, do: Verb) -> None:
        wanted = read_letters(call.body)
        endpoint_id = decode_endpoint_id(wanted.endpoint_id) if wanted.endpoint_id is not None else None
        letters = Letters(call.merchant.id, endpoint_id, wanted.seq)

        async def work(made: UUID) -> bytes:
            act = Act(
                id=made,
                merchant_id=call.merchant.id,
                actor="the merchant",
                action=f"dead_letters.{verb}",
                detail=msgspec.json.encode(wanted).decode(),
                at=self._context.now(),
            )
            async with self._context.pool.connection() as connection:
                return msgspec.json.encode(resources.Accepted(deliveries=await do(connection, letters, act)))

        await self._once(call, ACCEPTED, wanted, work, about=call.merchant.id)

    async def _once(
        self,
        call: Call,
        reply_status: int,
        wanted: msgspec.Struct | None,
        work: Callable[[UUID], Awaitable[bytes]],
        *,
        about: UUID | None = None,
        at: str | None = None,
    ) -> None:
        """Carry out a request once; `at` is the path below which it creates something."""
        key = read_key(call.scope)
        digest = fingerprint("POST", call.scope["path"].strip("/"), canonical(wanted))
        request = Request(
            id=call.id,
            merchant_id=call.merchant.id,
            key=key,
            fingerprint=digest,
            reply_status=reply_status,
            wait_seconds=reply_within_seconds(call.scope) or 0.0,
        )
        outcome = await once(self._context, request, work, about=about)
        if isinstance(outcome, Reply):
            headers = locations(at, outcome.body)
            await respond(call.send, outcome.status, outcome.body, content_type=JSON, headers=headers)
        else:
            await send_decision(call.send, outcome, at=at)


def endpoint_shape(endpoint: Endpoint, *, secret: str | None = None) -> resources.Endpoint:
    """An endpoint as its merchant sees it."""
    reason = endpoint.disabled_reason
    return resources.Endpoint(
        id=encode_id(ENDPOINT, endpoint.id),
        object="webhook_endpoint",
        url=endpoint.url,
        description=endpoint.description,
        enabled=endpoint.enabled,
        disabled_reason=reason.value if reason is not None else None,  # type: ignore[arg-type]  # deleted ones are not shown
        kept_from_seq=endpoint.kept_from_seq if not endpoint.enabled else None,
        failing_since=endpoint.failing_since,
        mode=endpoint.mode.value,
        event_types=list(endpoint.event_types or ()),
        requests_per_second_max=endpoint.requests_per_second_max,
        concurrency_max=endpoint.concurrency_max,
        old_secret_until=endpoint.old_secret_until,
        created_at=endpoint.created_at,
        secret=secret if secret is not None else msgspec.UNSET,
    )


def decode_endpoint_id(text: str) -> EndpointId:
    """The endpoint that a path or a body names. Raises `NotFound`."""
    try:
        return EndpointId(decode_id(ENDPOINT, text))
    except InvalidId as error:
        raise NotFound("no such webhook endpoint") from error


def _changed(endpoint: Endpoint, *, wanted: ChangeEndpoint) -> Endpoint:
    given = {name: value for name in wanted.__struct_fields__ if (value := getattr(wanted, name)) is not msgspec.UNSET}
    if "mode" in given:
        given["mode"] = EndpointMode(given["mode"])
    if "event_types" in given:
        given["event_types"] = parse_types(given["event_types"], path="$.event_types")
    given.pop("missed", None)
    if (paused := given.pop("paused", None)) is not None:
        given |= {"enabled": not paused, "disabled_reason": DisabledReason.PAUSED if paused else None}
    elif given.get("enabled") is False and endpoint.enabled:
        given["disabled_reason"] = DisabledReason.MERCHANT
    return replace(endpoint, **given)


def _delivery_fields(row: DeliveryRow) -> dict[str, object]:
    return {
        "endpoint_id": encode_id(ENDPOINT, row.endpoint_id),
        "seq": row.seq,
        "event_id": encode_id(EVENT, row.event_id),
        "event_type": row.event_type,
        "state": row.state,
        "attempts": row.attempts,
        "next_attempt_at": row.due_at,
        "last_status": row.last_status,
        "last_error": row.last_error,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _log(row: DeliveryRow, failed: list[FailedAttempt]) -> list[resources.Attempt]:
    """The attempts, oldest first. Failed ones have rows of their own; a successful one is the delivery's last."""
    attempts = [
        resources.Attempt(
            number=one.attempt,
            at=one.created_at,
            status=one.status,
            error=one.error,
            milliseconds=one.milliseconds,
            response=one.response,
        )
        for one in failed
    ]
    if row.state == "DELIVERED":
        attempts.append(
            resources.Attempt(
                number=row.attempts,
                at=row.updated_at,
                status=row.last_status,
                error=None,
                milliseconds=row.last_milliseconds,
                response=row.last_response,
            )
        )
    return attempts


def _decode_letter(text: str) -> tuple[EndpointId, int]:
    endpoint, _, seq = text.partition("-")
    try:
        return EndpointId(decode_id(ENDPOINT, f"{ENDPOINT}_{endpoint}")), decode_seq(seq)
    except (InvalidId, NotFound) as error:
        raise Unprocessable("this cursor is not one that a page returned", code="invalid_query", path="cursor") from error


async def _send(call: Call, body: object) -> None:
    await respond(call.send, 200, msgspec.json.encode(body), content_type=JSON)
