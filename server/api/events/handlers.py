"""`/v1/events`, `/v1/consumers` and `/v1/stream/tickets`: the pull API, and tickets for the stream."""

import re
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import msgspec
import trio

from core.errors import NotFound, Overloaded, Unprocessable
from core.events import is_wanted, parse_types
from core.ids import MerchantId
from server import resources
from server.api.events.bodies import CONSUMER_PATTERN, read_place_consumer, read_ticket
from server.api.parsing import WAIT_SECONDS_MAX, decode_seq, read_limit, read_query, read_seq, reply_within_seconds
from server.api.replies import JSON
from server.api.routing import Call
from server.credentials import key_hash, stream_ticket
from server.db.events.consumers import Consumer, Ticket, add_ticket, count_tickets, list_consumers, remove_consumer
from server.db.events.events import Event, find_event, list_events
from server.flows.contexts import Events
from server.flows.events.cursors import Position, begin, place
from server.flows.events.envelope import encode_event
from server.http.asgi import Scope, header, respond
from server.http.client.errors import NotSent
from server.http.client.url import parse_origin

TICKET_SECONDS = 30
WAITERS_MAX = 256
WAITERS_PER_MERCHANT_MAX = 32
TICKETS_MAX = 1_000
SCANNED_EVENTS_MAX = 2_000
"""The most events that one request scans for its types."""

_CONSUMER = re.compile(CONSUMER_PATTERN)


class EventsApi:
    """The handlers."""

    def __init__(self, context: Events) -> None:
        self._context = context
        self._waits: set[trio.CancelScope] = set()
        self._waiting: dict[MerchantId, int] = {}
        self._is_stopping = False

    def end_waits(self) -> None:
        """Answer all waiting requests, because this worker stops."""
        self._is_stopping = True
        for scope in self._waits:
            scope.cancel()

    async def list_all(self, call: Call) -> None:
        """`GET /v1/events`: the events after `after` or a consumer's position; with `wait`, as soon as there is one."""
        fields = read_query(call.scope, "after", "limit", "types", "wait", "consumer", "epoch")
        limit, types, wait = read_limit(fields), read_types(fields), _read_wait(call, fields)
        asked = read_position(fields)
        position = asked if asked.after_seq is not None or asked.consumer is not None else replace(asked, after_seq=0)
        sequence, resumption = await begin(self._context, call.merchant.id, position)
        found, seq = await self._find(call, resumption.after_seq, limit=limit, types=types)
        last_seq = max(sequence.last_seq, seq)
        is_gap = not resumption.recovered and asked.after_seq is not None
        if not found and seq == last_seq and wait and not is_gap and self._may_wait(call):
            found, seq, last_seq = await self._wait(call, seq, limit=limit, types=types, seconds=wait)
        page = {
            "data": [msgspec.Raw(encode_event(event)) for event in found],
            "seq": seq,
            "has_more": seq < last_seq,
            "recovered": resumption.recovered,
            "epoch": str(sequence.epoch),
        }
        await respond(call.send, 200, msgspec.json.encode(page), content_type=JSON)

    async def read(self, call: Call, seq_text: str) -> None:
        """`GET /v1/events/{seq}`."""
        async with self._context.pool.connection() as connection:
            event = await find_event(connection, call.merchant.id, decode_seq(seq_text))
        if event is None:
            raise NotFound("no such event")
        await respond(call.send, 200, encode_event(event), content_type=JSON)

    async def consumers(self, call: Call) -> None:
        """`GET /v1/consumers`."""
        async with self._context.pool.connection() as connection:
            found = await list_consumers(connection, call.merchant.id)
        await respond(call.send, 200, msgspec.json.encode({"data": [_shape(one) for one in found]}), content_type=JSON)

    async def place_consumer(self, call: Call, name: str) -> None:
        """`PUT /v1/consumers/{name}`: move the position forward, or back to receive events again."""
        wanted = read_place_consumer(call.body)
        _require_consumer(name, path="name")
        consumer = await place(self._context, call.merchant.id, name, acked_seq=wanted.acked_seq)
        await respond(call.send, 200, msgspec.json.encode(_shape(consumer)), content_type=JSON)

    async def remove_consumer(self, call: Call, name: str) -> None:
        """`DELETE /v1/consumers/{name}`."""
        async with self._context.pool.connection() as connection:
            if not _CONSUMER.match(name) or not await remove_consumer(connection, call.merchant.id, name):
                raise NotFound("no such consumer")
        await respond(call.send, 204, b"", content_type=JSON)

    async def ticket(self, call: Call) -> None:
        """`POST /v1/stream/tickets`. An unused ticket expires after 30 s, so this needs no key."""
        wanted = read_ticket(call.body)
        assert call.caller is not None
        text = stream_ticket(call.merchant.id)
        ticket = Ticket(
            merchant_id=call.merchant.id,
            key_id=call.caller.key_id,
            origin=origin_of(wanted.origin),
            event_types=parse_types(wanted.event_types, path="$.event_types"),
            consumer=wanted.consumer,
            expires_at=self._context.now() + timedelta(seconds=TICKET_SECONDS),
        )
        async with self._context.pool.connection() as connection:
            if await count_tickets(connection, call.merchant.id, now=self._context.now()) >= TICKETS_MAX:
                raise Overloaded(f"{TICKETS_MAX} tickets are unused: use them, or wait {TICKET_SECONDS} s")
            await add_ticket(connection, ticket, ticket_sha256=key_hash(text))
        url = f"{_websocket_origin(call.scope)}/v1/stream?ticket={text}"
        shape = resources.StreamTicket(ticket=text, url=url, expires_at=ticket.expires_at)
        headers = [(b"cache-control", b"no-store")]
        await respond(call.send, 201, msgspec.json.encode(shape), content_type=JSON, headers=headers)

    async def _find(self, call: Call, seq: int, *, limit: int, types: tuple[str, ...] | None) -> tuple[list[Event], int]:
        """The following events, and the number up to which they were scanned."""
        found: list[Event] = []
        scanned = 0
        while len(found) < limit and scanned < SCANNED_EVENTS_MAX:
            wanted = limit if types is None else SCANNED_EVENTS_MAX // 10
            async with self._context.pool.connection() as connection:
                page = await list_events(connection, call.merchant.id, after_seq=seq, limit=wanted)
            for event in page:
                seq = event.seq
                if is_wanted(event.type, types):
                    found.append(event)
                    if len(found) == limit:
                        break
            scanned += len(page)
            if len(page) < wanted:
                break
        return found, seq

    def _may_wait(self, call: Call) -> bool:
        """Return whether this request may wait. One that may not is answered at once: waiting must leave room for payments."""
        of_merchant = self._waiting.get(call.merchant.id, 0)
        return not self._is_stopping and len(self._waits) < WAITERS_MAX and of_merchant < WAITERS_PER_MERCHANT_MAX

    async def _wait(
        self, call: Call, seq: int, *, limit: int, types: tuple[str, ...] | None, seconds: float
    ) -> tuple[list[Event], int, int]:
        """Wait until events follow or the client disconnects."""
        merchant_id = call.merchant.id
        self._waiting[merchant_id] = self._waiting.get(merchant_id, 0) + 1
        found: list[Event] = []
        wait = trio.CancelScope(deadline=trio.current_time() + seconds)
        self._waits.add(wait)
        try:
            with self._context.feeds.reading(merchant_id, last_seq=seq) as feed:
                with wait:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_cancel_when_gone, call, wait)
                        while not found and seq == feed.last_seq and not feed.is_void:
                            await feed.wait_after(seq)
                            found, seq = await self._find(call, seq, limit=limit, types=types)
                        nursery.cancel_scope.cancel()
                return found, seq, max(feed.last_seq, seq)
        finally:
            self._waits.discard(wait)
            self._waiting[merchant_id] -= 1
            if not self._waiting[merchant_id]:
                del self._waiting[merchant_id]


def _websocket_origin(scope: Scope) -> str:
    """The origin at which the client has reached this server, for a websocket."""
    scheme = "wss" if scope["scheme"] in ("https", "wss") else "ws"
    return f"{scheme}://{header(scope, b'host') or 'localhost'}"


async def _cancel_when_gone(call: Call, scope: trio.CancelScope) -> None:
    await call.until_gone()
    scope.cancel()


def read_position(fields: dict[str, str]) -> Position:
    """Read a reader's position from a query. Raises `Unprocessable`."""
    epoch = None
    if "epoch" in fields:
        try:
            epoch = UUID(fields["epoch"])
        except ValueError as error:
            raise Unprocessable(
                "epoch must be the value that came with the last events", code="invalid_query", path="epoch"
            ) from error
    if "consumer" in fields:
        _require_consumer(fields["consumer"], path="consumer")
    return Position(after_seq=read_seq(fields, "after"), epoch=epoch, consumer=fields.get("consumer"))


def read_types(fields: dict[str, str]) -> tuple[str, ...] | None:
    """Read a reader's event types from a query, separated by commas. Raises `Unprocessable`."""
    if "types" in fields and "event_types" in fields:
        raise Unprocessable("event_types is another name of types: give one of them", code="invalid_query", path="event_types")
    text = fields.get("types", fields.get("event_types", ""))
    return parse_types([one.strip() for one in text.split(",") if one.strip()], path="types")


def origin_of(text: str) -> str:
    """An origin as browsers write it: in lower case, without the default port. Raises `Unprocessable`."""
    try:
        origin = parse_origin(text)
    except NotSent as error:
        raise Unprocessable("expected an origin like https://shop.example", code="invalid_field", path="$.origin") from error
    return f"{'https' if origin.is_secure else 'http'}://{origin.host_header}"


def _require_consumer(name: str, *, path: str) -> None:
    if not _CONSUMER.match(name):
        detail = "a consumer's name has 1 to 64 letters, digits, dots, hyphens or underscores"
        raise Unprocessable(detail, code="invalid_consumer", path=path)


def _read_wait(call: Call, fields: dict[str, str]) -> float:
    text = fields.get("wait")
    if text is None:
        return reply_within_seconds(call.scope) or 0.0
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise Unprocessable("wait must be a number of seconds", code="invalid_query", path="wait")
    return float(min(int(text), WAIT_SECONDS_MAX))


def _shape(consumer: Consumer) -> resources.Consumer:
    return resources.Consumer(
        name=consumer.name, acked_seq=consumer.acked_seq, created_at=consumer.created_at, updated_at=consumer.updated_at
    )
