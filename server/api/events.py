"""`/v1/events`, `/v1/consumers` and `/v1/stream/tickets`: events by asking for them, and what the stream needs."""

import re
from datetime import timedelta
from uuid import UUID

import msgspec
import trio

from core.errors import NotFound, Overloaded, Unprocessable
from core.events import is_wanted, parse_types
from server import shapes
from server.api.bodies import WAIT_SECONDS_MAX, read_limit, read_query, reply_within_seconds
from server.api.call import Call
from server.api.endpoints import decode_seq, read_seq
from server.api.notification_bodies import CONSUMER_PATTERN, read_place_consumer, read_ticket
from server.api.payments import JSON
from server.db.events import Event, find_event, find_sequence, list_events
from server.db.streams import Consumer, Ticket, add_ticket, list_consumers, remove_consumer
from server.flows.envelope import encode_event
from server.flows.services import Services
from server.flows.stream import Position, begin, place
from server.http.asgi import respond
from server.new_ids import key_hash, stream_ticket

TICKET_SECONDS = 30
WAITERS_MAX = 5_000
SCANNED_EVENTS_MAX = 2_000
"""How many events a request looks through for those of its types."""

_CONSUMER = re.compile(CONSUMER_PATTERN)


class EventsApi:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._waiters = 0

    async def list_all(self, call: Call) -> None:
        """`GET /v1/events`: what follows `after`, or a consumer's cursor; with `wait`, as soon as there is something."""
        fields = read_query(call.scope, "after", "limit", "types", "wait", "consumer", "epoch")
        limit, types, wait = read_limit(fields), read_types(fields), _read_wait(call, fields)
        position = read_position(fields)
        if position.after_seq is None and position.consumer is None:
            position = Position(after_seq=0, epoch=position.epoch)
        sequence, resumption = await begin(self._services, call.merchant.id, position)
        seq, last_seq = resumption.after_seq, sequence.last_seq
        found, seq = await self._find(call, seq, limit=limit, types=types)
        is_gap = not resumption.recovered and position.after_seq is not None
        if not found and wait and not is_gap:  # a gap is told at once
            if self._waiters >= WAITERS_MAX:
                raise Overloaded("too many requests wait for events")
            self._waiters += 1
            try:
                found, seq, last_seq = await self._wait(call, seq, limit=limit, types=types, seconds=wait)
            finally:
                self._waiters -= 1
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
        async with self._services.db.pool.connection() as connection:
            event = await find_event(connection, call.merchant.id, decode_seq(seq_text))
        if event is None:
            raise NotFound("no such event")
        await respond(call.send, 200, encode_event(event), content_type=JSON)

    async def consumers(self, call: Call) -> None:
        """`GET /v1/consumers`."""
        async with self._services.db.pool.connection() as connection:
            found = await list_consumers(connection, call.merchant.id)
        await respond(call.send, 200, msgspec.json.encode({"data": [_shape(one) for one in found]}), content_type=JSON)

    async def place_consumer(self, call: Call, name: str) -> None:
        """`PUT /v1/consumers/{name}`: forward, or back to be sent again what follows."""
        wanted = read_place_consumer(call.body)
        _require_consumer(name, path="name")
        async with self._services.db.pool.connection() as connection:
            last_seq = (await find_sequence(connection, call.merchant.id)).last_seq
            if wanted.acked_seq > last_seq:
                detail = f"the last event is number {last_seq}"
                raise Unprocessable(detail, code="invalid_field", path="$.acked_seq")
            consumer = await place(self._services, connection, call.merchant.id, name, acked_seq=wanted.acked_seq)
        await respond(call.send, 200, msgspec.json.encode(_shape(consumer)), content_type=JSON)

    async def remove_consumer(self, call: Call, name: str) -> None:
        """`DELETE /v1/consumers/{name}`."""
        async with self._services.db.pool.connection() as connection:
            if not await remove_consumer(connection, call.merchant.id, name):
                raise NotFound("no such consumer")
        await respond(call.send, 204, b"", content_type=JSON)

    async def ticket(self, call: Call) -> None:
        """`POST /v1/stream/tickets`. A ticket that nobody uses is gone after 30 s, so this needs no key."""
        wanted = read_ticket(call.body)
        assert call.caller is not None
        text = stream_ticket(call.merchant.id)
        ticket = Ticket(
            merchant_id=call.merchant.id,
            key_id=call.caller.key_id,
            origin=wanted.origin.lower(),
            event_types=parse_types(wanted.event_types, path="$.event_types"),
            consumer=wanted.consumer,
            expires_at=self._services.now() + timedelta(seconds=TICKET_SECONDS),
        )
        async with self._services.db.pool.connection() as connection:
            await add_ticket(connection, ticket, ticket_sha256=key_hash(text))
        shape = shapes.StreamTicket(ticket=text, url=f"/v1/stream?ticket={text}", expires_at=ticket.expires_at)
        headers = [(b"cache-control", b"no-store")]
        await respond(call.send, 201, msgspec.json.encode(shape), content_type=JSON, headers=headers)

    async def _find(self, call: Call, seq: int, *, limit: int, types: tuple[str, ...] | None) -> tuple[list[Event], int]:
        """Events that follow, and the number up to which they were looked through."""
        found: list[Event] = []
        scanned = 0
        while len(found) < limit and scanned < SCANNED_EVENTS_MAX:
            wanted = limit if types is None else SCANNED_EVENTS_MAX // 10
            async with self._services.db.pool.connection() as connection:
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

    async def _wait(
        self, call: Call, seq: int, *, limit: int, types: tuple[str, ...] | None, seconds: float
    ) -> tuple[list[Event], int, int]:
        found: list[Event] = []
        with self._services.feeds.reading(call.merchant.id, last_seq=seq) as feed:
            with trio.move_on_after(seconds):
                while not found:
                    await feed.until_after(seq)
                    found, seq = await self._find(call, seq, limit=limit, types=types)
            return found, seq, max(feed.last_seq, seq)


def read_position(fields: dict[str, str]) -> Position:
    """Where a reader is, by a query. Raises `Unprocessable`."""
    epoch = None
    if "epoch" in fields:
        try:
            epoch = UUID(fields["epoch"])
        except ValueError as error:
            raise Unprocessable("epoch is what was told with the last events", code="invalid_query", path="epoch") from error
    if "consumer" in fields:
        _require_consumer(fields["consumer"], path="consumer")
    return Position(after_seq=read_seq(fields, "after"), epoch=epoch, consumer=fields.get("consumer"))


def read_types(fields: dict[str, str]) -> tuple[str, ...] | None:
    """The types that a reader wants, by a query, separated by commas. Raises `Unprocessable`."""
    text = fields.get("types", "")
    return parse_types([one.strip() for one in text.split(",") if one.strip()], path="types")


def _require_consumer(name: str, *, path: str) -> None:
    if not _CONSUMER.match(name):
        detail = "a consumer's name has 1 to 64 letters, digits, dots, hyphens or underscores"
        raise Unprocessable(detail, code="invalid_consumer", path=path)


def _read_wait(call: Call, fields: dict[str, str]) -> float:
    text = fields.get("wait")
    if text is None:
        return reply_within_seconds(call.scope) or 0.0
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and int(text) <= WAIT_SECONDS_MAX):
        raise Unprocessable(f"wait is a number of seconds, at most {WAIT_SECONDS_MAX}", code="invalid_query", path="wait")
    return float(text)


def _shape(consumer: Consumer) -> shapes.Consumer:
    return shapes.Consumer(
        name=consumer.name, acked_seq=consumer.acked_seq, created_at=consumer.created_at, updated_at=consumer.updated_at
    )
