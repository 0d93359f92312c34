"""`GET /v1/stream`: a merchant's events over a websocket, from where the reader stopped, without gaps or repetitions.

The first frame says where the stream continues: `{"epoch", "recovered", "seq", "api_version"}`. Then come the events, the same
documents that webhooks carry. Past events are read from the table at the client's pace; live ones are sent as they happen, and a
client that is more than a megabyte behind is cut off with 1013. A client may send `{"ack": seq}`, which moves its named consumer.

Close codes: 1012 the server restarts and 1013 too far behind, after both of which the client reconnects from its position; 1008 a
message that cannot be understood; 4401 the key was revoked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import msgspec
import structlog
import trio

from core.api_keys import KeyScope
from core.errors import DatabaseUnavailable, FlorinError, NotFound, Overloaded, RequestError, Unauthenticated
from core.events import API_VERSION, is_wanted
from core.ids import REQUEST, MerchantId, encode_id
from core.resumption import Resumption, Sequence
from server.api.authentication import Authentication
from server.api.events.bodies import read_ack
from server.api.events.handlers import read_position, read_types
from server.api.parsing import read_query
from server.api.problems import request_id_header, send_error
from server.api.replies import with_headers
from server.api.routing import Caller
from server.credentials import key_hash, merchant_of_ticket
from server.db.events.consumers import use_ticket
from server.db.events.events import list_events
from server.db.merchants.api_keys import revoked_keys
from server.flows.contexts import Events
from server.flows.events.cursors import Position, begin
from server.flows.events.envelope import encode_event
from server.flows.events.live_feeds import Feed, Reader
from server.http.asgi import Message, Receive, Scope, Send, header
from server.http.websocket.frame import FRAME_EXTENSION
from server.uuid7 import uuid7

STREAMS_PER_MERCHANT_MAX = 10_000
PAGE_EVENTS = 200
WATCH_SECONDS = 1.0
JOINING_MAX = 4
"""The number of streams that read past events from the database at the same time."""

JOIN_SECONDS = 15.0

POLICY, RESTART, TRY_AGAIN_LATER, KEY_REVOKED = 1008, 1012, 1013, 4401
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Admitted:
    """An admitted reader: its merchant, filter and position."""

    merchant_id: MerchantId
    key: tuple[MerchantId, UUID]
    types: tuple[str, ...] | None
    position: Position


class _CloseRequest:
    """A request to end one stream. `close` sends the close code, in a task of its own."""

    __slots__ = ("_close", "_is_made")

    def __init__(self, close: Callable[[int, str], None]) -> None:
        self._close = close
        self._is_made = False

    def end(self, code: int, reason: str) -> None:
        """End the stream with this close code. The first call counts."""
        if not self._is_made:
            self._is_made = True
            self._close(code, reason)

    def end_renumbered(self) -> None:
        """End the stream because its numbers mean other events now."""
        self.end(RESTART, "the events were renumbered: reconnect")


class StreamApi:
    """The handler, and the watch over the keys that opened streams.

    A stream that waits for events has no task of its own besides its connection's: `run` holds those that catch up or close.
    """

    def __init__(self, context: Events, authentication: Authentication) -> None:
        self._context = context
        self._authentication = authentication
        self._by_key: dict[tuple[MerchantId, UUID], set[_CloseRequest]] = {}
        self._open: dict[MerchantId, int] = {}
        self._joining = trio.Semaphore(JOINING_MAX)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the streams' tasks, and close the streams of revoked keys, until canceled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(WATCH_SECONDS)
                try:
                    await self._close_revoked()
                except Exception as error:  # noqa: BLE001 - a failed check must not end the worker
                    _log.warning("cannot check for revoked keys", error=str(error))

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one websocket to its end."""
        await receive()
        request_id = encode_id(REQUEST, uuid7())
        try:
            with trio.move_on_after(JOIN_SECONDS) as wait:
                async with self._joining:  # thousands may reconnect at once, and payments need the database too
                    admitted = await self._admit(scope)
                    sequence, resumption = await begin(self._context, admitted.merchant_id, admitted.position)
            if wait.cancelled_caught:
                raise Overloaded("too many clients are connecting to the stream: try again in a few seconds")
            if self._open.get(admitted.merchant_id, 0) >= STREAMS_PER_MERCHANT_MAX:
                raise Overloaded(f"a merchant has at most {STREAMS_PER_MERCHANT_MAX} streams open here")
        except FlorinError as error:
            await send_error(with_headers(partial(_deny, send), [request_id_header(request_id)]), error, request_id=request_id)
            return
        with self._counted(admitted, send) as ends:
            try:
                await send({"type": "websocket.accept", "headers": [request_id_header(request_id)]})
                await self._serve(receive, send, admitted, (sequence, resumption), ends)
            except OSError:
                return  # the peer is gone
            except Overloaded as error:
                await _close(send, TRY_AGAIN_LATER, str(error))

    async def _admit(self, scope: Scope) -> _Admitted:
        """Authenticate and admit a reader. Raises `Unauthenticated`, `Unprocessable`, `NotFound`."""
        if FRAME_EXTENSION not in scope.get("extensions", ()):
            raise NotFound("streams are not available on this server")
        fields = read_query(scope, "after", "types", "consumer", "epoch", "ticket")
        if "ticket" not in fields:
            caller: Caller = await self._authentication.caller_of(scope)
            caller.require(KeyScope.READ)
            key = (caller.merchant.id, caller.key_id)
            return _Admitted(caller.merchant.id, key, read_types(fields), read_position(fields))
        if fields.keys() & {"types", "event_types", "consumer"}:
            raise Unauthenticated("with a ticket, types and consumer are those of the ticket", code="ticket_scope")
        merchant_id = merchant_of_ticket(fields["ticket"])
        ticket = None
        if merchant_id is not None:
            async with self._context.pool.connection() as connection:
                digest = key_hash(fields["ticket"])
                ticket = await use_ticket(connection, merchant_id, ticket_sha256=digest, now=self._context.now())
        if ticket is None or (header(scope, b"origin") or "").lower() != ticket.origin:
            raise Unauthenticated("this ticket is unknown, used, expired or for another origin", code="ticket_invalid")
        asked = read_position(fields)
        position = Position(after_seq=asked.after_seq, epoch=asked.epoch, consumer=ticket.consumer)
        return _Admitted(ticket.merchant_id, (ticket.merchant_id, ticket.key_id), ticket.event_types, position)

    async def _serve(
        self,
        receive: Receive,
        send: Send,
        admitted: _Admitted,
        begun: tuple[Sequence, Resumption],
        ends: _CloseRequest,
    ) -> None:
        sequence, resumption = begun
        hello = {
            "epoch": str(sequence.epoch),
            "recovered": resumption.recovered,
            "seq": resumption.after_seq,
            "api_version": API_VERSION,
        }
        await send({"type": "websocket.send", "text": msgspec.json.encode(hello).decode()})
        reader = Reader(send, ends.end_renumbered, types=admitted.types)
        scope = trio.CancelScope()
        with self._context.feeds.reading(admitted.merchant_id, last_seq=sequence.last_seq) as feed:
            assert self._nursery is not None
            try:
                self._nursery.start_soon(self._catch_up, scope, feed, reader, send, resumption.after_seq)
                await self._receive_acks(receive, send, feed, admitted, last_seq=sequence.last_seq)
            finally:
                scope.cancel()
                feed.leave(reader)

    async def _catch_up(self, scope: trio.CancelScope, feed: Feed, reader: Reader, send: Send, seq: int) -> None:
        """Send past events until nothing lies between them and the live ones, then join. `scope` ends it with its stream."""
        with scope:
            try:
                if await self._send_past(feed, reader, send, seq) and not scope.cancel_called:
                    feed.join(reader)  # without a checkpoint in between
            except OSError:
                return  # the peer is gone
            except (DatabaseUnavailable, Overloaded) as error:
                _log.warning("a stream cannot read past events", error=str(error))
                await _close(send, TRY_AGAIN_LATER, "the events cannot be read at the moment: reconnect")
            except Exception:  # noqa: BLE001 - one stream's failure must not end the others
                _log.exception("a stream failed")
                await _close(send, RESTART, "the server failed: reconnect")

    async def _send_past(self, feed: Feed, reader: Reader, send: Send, seq: int) -> bool:
        """Send past events. Returns whether nothing lies between them and the live ones; otherwise the stream is closed."""
        while seq != feed.last_seq:
            if feed.is_void:
                await _close(send, RESTART, "the events were renumbered: reconnect")
                return False
            if seq > feed.last_seq:
                await feed.wait_after(seq - 1)
                continue
            async with self._joining, self._context.pool.connection() as connection:
                page = await list_events(connection, feed.merchant_id, after_seq=seq, limit=PAGE_EVENTS)
            if not page or feed.is_void:
                await _close(send, RESTART, "the events were renumbered: reconnect")
                return False
            for event in page:
                if event.seq > feed.last_seq:
                    break
                if is_wanted(event.type, reader.types):
                    await send({"type": "websocket.send", "text": encode_event(event).decode()})
                seq = event.seq
        return True

    async def _receive_acks(self, receive: Receive, send: Send, feed: Feed, admitted: _Admitted, *, last_seq: int) -> None:
        """Receive acknowledgements until the client leaves."""
        consumer = admitted.position.consumer
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                seq = read_ack(message.get("text") or "").ack
            except RequestError as error:
                await _close(send, POLICY, f'expected {{"ack": seq}}: {error}')
                return
            if consumer is None or seq > max(feed.last_seq, last_seq):
                why = (
                    "only a stream with a consumer accepts acknowledgements" if consumer is None else "an event that was not sent"
                )
                await _close(send, POLICY, why)
                return
            self._context.acks.note(admitted.merchant_id, consumer, seq)

    def _close_soon(self, send: Send, code: int, reason: str) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(_close, send, code, reason)

    @contextmanager
    def _counted(self, admitted: _Admitted, send: Send) -> Iterator[_CloseRequest]:
        merchant_id, ends = admitted.merchant_id, _CloseRequest(partial(self._close_soon, send))
        self._open[merchant_id] = self._open.get(merchant_id, 0) + 1
        self._by_key.setdefault(admitted.key, set()).add(ends)
        try:
            yield ends
        finally:
            of_key = self._by_key[admitted.key]
            of_key.discard(ends)
            if not of_key:
                del self._by_key[admitted.key]
            self._open[merchant_id] -= 1
            if not self._open[merchant_id]:
                del self._open[merchant_id]

    async def _close_revoked(self) -> None:
        keys = list(self._by_key)
        for at in range(0, len(keys), 1_000):
            async with self._context.pool.connection() as connection:
                ended = await revoked_keys(connection, keys[at : at + 1_000])
            for key in keys[at : at + 1_000]:
                if key[1] in ended:
                    for ends in self._by_key.get(key, ()):
                        ends.end(KEY_REVOKED, "the API key was revoked")


async def _deny(send: Send, message: Message) -> None:
    """Answer the handshake with a problem instead (ASGI's extension websocket.http.response)."""
    await send({**message, "type": "websocket." + message["type"]})


async def _close(send: Send, code: int, reason: str) -> None:
    try:
        await send({"type": "websocket.close", "code": code, "reason": reason[:100]})
    except OSError:
        return  # it has closed already
