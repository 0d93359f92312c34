"""`/v1/batches`: submit, follow, stop and resume batches.

The reply waits for the batch's end: 200 in time, 408 if its deadline has passed, with a result for every item in both cases. With
`Accept: application/x-ndjson` each result is sent as it becomes known, and the last line is the summary or the 408 problem,
because a status cannot be changed once it was sent. The batch runs on if its client disconnects.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import trio

from core.api_keys import KeyScope
from core.batch import BATCH, BatchId, BatchStatus, ItemStatus, ItemType
from core.errors import BodyTooLate, InvalidId, NotFound, Overloaded, Unprocessable
from core.idempotency import Mismatch, fingerprint
from core.ids import MerchantId, decode_id, encode_id
from server.api.batches.bodies import BODY_BYTES_MAX, batch_data, item_data, never_started, read_batch, read_resumption
from server.api.parsing import decode_cursor, encode_cursor, read_key, read_limit, read_number, read_query, reply_within_seconds
from server.api.problems import problem, send_problem
from server.api.replies import ACCEPTED, JSON, OK, location, replayed, send_decision
from server.api.routing import Call
from server.db.batches.batches import Batch, list_batches
from server.flows.batches import batch as flow
from server.flows.batches.batch import Standing, Terms
from server.flows.batches.item import Item
from server.flows.contexts import Batches
from server.flows.idempotency import Request
from server.http.asgi import header, read_body, respond

NDJSON = b"application/x-ndjson"
DEADLINE_PASSED = 408
GRACE_SECONDS = 60.0
"""The time after its deadline for which a reply waits for a batch: recording items that were cut off, or waiting for another
worker's lease, takes a moment.
"""

FOLLOWERS_MAX, FOLLOWERS_PER_MERCHANT_MAX = 128, 16
READING_MAX, READING_PER_MERCHANT_MAX = 16, 4
"""The number of batches that are read at the same time, of up to 8 MiB each."""

READ_SECONDS = 60.0

POSITION_MAX = 999_999_999
PROGRESS_SECONDS = 5.0
LINES = 50
"""The number of lines of a stream that are sent at once."""

Headers = Sequence[tuple[bytes, bytes]]
Lines = Sequence[dict[str, Any]]


class BatchesApi:
    """The handlers. `end_waits` answers waiting requests because this worker stops; the batches continue elsewhere."""

    def __init__(self, context: Batches) -> None:
        self._context = context
        self._waits: dict[trio.CancelScope, MerchantId] = {}
        self._is_stopping = False
        self._readers: dict[MerchantId, int] = {}

    def end_waits(self) -> None:
        """Answer all waiting requests with the current state of their batch."""
        self._is_stopping = True
        for scope in self._waits:
            scope.cancel()

    async def create(self, call: Call) -> None:
        """`POST /v1/batches`."""
        key = read_key(call.scope)
        accepted = await self._accept(call, key)
        if isinstance(accepted, Mismatch):
            await send_decision(call.send, accepted)
            return
        batch, is_known = accepted
        await self._answer(call, batch, is_known=is_known)

    async def resume(self, call: Call, batch_text: str) -> None:
        """`POST /v1/batches/{id}/resume`. The token is good for one resumption, so this needs no key."""
        batch_id = decode_batch_id(batch_text)
        assert call.caller is not None
        for scope in (KeyScope.PAYMENTS_WRITE, KeyScope.REFUNDS_WRITE):  # its items may be of any kind
            call.caller.require(scope)
        token, deadline_seconds, concurrency = read_resumption(call.body)
        before = (await flow.read(self._context, call.merchant.id, batch_id)).batch
        terms = Terms(deadline_seconds=deadline_seconds or before.deadline_seconds, concurrency=concurrency or before.concurrency)
        self._require_room(call)
        await self._answer(call, await flow.resume(self._context, call.merchant.id, batch_id, token, terms))

    async def stop(self, call: Call, batch_text: str) -> None:
        """`POST /v1/batches/{id}/stop`. Repeating it changes nothing, so this needs no key."""
        standing = await flow.stop(self._context, call.merchant.id, decode_batch_id(batch_text))
        await respond(call.send, ACCEPTED, msgspec.json.encode(batch_data(standing)), content_type=JSON)

    async def read(self, call: Call, batch_text: str) -> None:
        """`GET /v1/batches/{id}`: the current state; as NDJSON, followed to the end."""
        fields = read_query(call.scope, "after")
        after = _read_position(fields)
        standing = await flow.read(self._context, call.merchant.id, decode_batch_id(batch_text))
        if _wants_lines(call):
            self._require_room(call)
            await self._stream(call, standing.batch, after=after)
            return
        wait = reply_within_seconds(call.scope)
        if wait and standing.batch.status is BatchStatus.RUNNING and self._may_wait(call):
            await self._wait(call, standing.batch, seconds=wait)
            standing = await flow.read(self._context, call.merchant.id, standing.batch.id)
        await respond(call.send, 200, msgspec.json.encode(batch_data(standing)), content_type=JSON)

    async def items(self, call: Call, batch_text: str) -> None:
        """`GET /v1/batches/{id}/items`: results in the order in which they became known, in pages."""
        fields = read_query(call.scope, "after", "limit")
        after, limit = _read_position(fields), read_limit(fields)
        batch = (await flow.read(self._context, call.merchant.id, decode_batch_id(batch_text))).batch
        found = await flow.page(self._context, call.merchant.id, batch.id, after=after, limit=limit)
        page = {
            "data": [item_data(result, position=position) for position, result in found],
            "position": found[-1][0] if found else after,
            "has_more": len(found) == limit,
        }
        await respond(call.send, 200, msgspec.json.encode(page), content_type=JSON)

    async def list(self, call: Call) -> None:
        """`GET /v1/batches`: newest first, in pages."""
        fields = read_query(call.scope, "cursor", "limit")
        limit = read_limit(fields)
        before = BatchId(decode_cursor(fields["cursor"])) if "cursor" in fields else None
        async with self._context.pool.connection() as connection:
            batches, following = await list_batches(connection, call.merchant.id, before=before, limit=limit)
        page = {
            "data": [batch_data(await flow.read(self._context, call.merchant.id, one.id)) for one in batches],
            "has_more": following is not None,
            "next_cursor": encode_cursor(following) if following is not None else None,
        }
        await respond(call.send, 200, msgspec.json.encode(page), content_type=JSON)

    async def _accept(self, call: Call, key: str) -> tuple[Batch, bool] | Mismatch:
        """Read and accept a batch. The body is released at the end of this. Raises `Overloaded`, `TooLarge`."""
        assert call.receive is not None
        self._require_room(call)
        with self._reading(call.merchant.id):
            body: bytes | None = None
            with trio.move_on_after(READ_SECONDS):
                body = await read_body(call.receive, bytes_max=BODY_BYTES_MAX)
            if body is None:
                raise BodyTooLate(f"the body did not arrive within {READ_SECONDS:.0f} s; nothing was done: repeat the request")
            items, terms, canonical = await read_batch(body)
        _require_scopes(call, items)
        self._require_room(call)
        request = Request(
            id=call.id,
            merchant_id=call.merchant.id,
            key=key,
            fingerprint=fingerprint("POST", "/v1/batches", canonical),
            reply_status=OK,
        )
        return await flow.accept(self._context, request, items, terms)

    @contextmanager
    def _reading(self, merchant_id: MerchantId) -> Iterator[None]:
        """Limit the large bodies in memory, in all and per merchant."""
        if self._readers.get(merchant_id, 0) >= READING_PER_MERCHANT_MAX or sum(self._readers.values()) >= READING_MAX:
            raise Overloaded("too many batches are being uploaded: try again shortly")
        self._readers[merchant_id] = self._readers.get(merchant_id, 0) + 1
        try:
            yield
        finally:
            self._readers[merchant_id] -= 1
            if not self._readers[merchant_id]:
                del self._readers[merchant_id]

    def _may_wait(self, call: Call) -> bool:
        of_merchant = sum(one == call.merchant.id for one in self._waits.values())
        return not self._is_stopping and len(self._waits) < FOLLOWERS_MAX and of_merchant < FOLLOWERS_PER_MERCHANT_MAX

    def _require_room(self, call: Call) -> None:
        """Raise `Overloaded` before anything is done, if this worker stops or cannot take another stream."""
        if self._is_stopping or (_wants_lines(call) and not self._may_wait(call)):
            raise Overloaded(
                "too many batches are being followed here: try again, or send the request without `Accept: application/x-ndjson`"
            )

    async def _answer(self, call: Call, batch: Batch, *, is_known: bool = False) -> None:
        headers = [location(f"/v1/batches/{encode_id(BATCH, batch.id)}"), *replayed(is_known)]
        if _wants_lines(call):
            await self._stream(call, batch, after=batch.run_position, headers=headers)
            return
        wait = reply_within_seconds(call.scope)
        left_seconds = (batch.deadline_at - self._context.now()).total_seconds() + GRACE_SECONDS
        if wait != 0 and self._may_wait(call):
            await self._wait(call, batch, seconds=wait if wait is not None else max(left_seconds, 0.0))
        standing = await flow.read(self._context, batch.merchant_id, batch.id)
        await self._send_report(call, standing, headers)

    async def _wait(self, call: Call, batch: Batch, *, seconds: float) -> None:
        """Wait until the batch has ended or the client disconnects."""
        with self._waiting(call) as wait_scope, wait_scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, call, wait_scope)
                await flow.wait(self._context, batch, seconds=seconds)
                nursery.cancel_scope.cancel()

    @contextmanager
    def _waiting(self, call: Call) -> Iterator[trio.CancelScope]:
        """Register a waiting request, and yield the scope that ends its wait."""
        wait_scope = trio.CancelScope()
        self._waits[wait_scope] = call.merchant.id
        if self._is_stopping:
            wait_scope.cancel()
        try:
            yield wait_scope
        finally:
            del self._waits[wait_scope]

    async def _send_report(self, call: Call, standing: Standing, headers: Headers) -> None:
        """Send the batch, with every item if it has ended."""
        data = batch_data(standing)
        if standing.batch.status is BatchStatus.RUNNING:
            await respond(call.send, ACCEPTED, msgspec.json.encode(data), content_type=JSON, headers=headers)
            return
        items = await self._all_items(standing.batch)
        if standing.batch.status is BatchStatus.TIMED_OUT:
            await send_problem(
                call.send,
                DEADLINE_PASSED,
                code="batch_deadline_passed",
                detail=_said(standing),
                request_id=call.request_id,
                headers=headers,
                resume_token=data["resume_token"],
                batch=data,
                items=items,
            )
            return
        await respond(call.send, 200, msgspec.json.encode({**data, "items": items}), content_type=JSON, headers=headers)

    async def _all_items(self, batch: Batch) -> Lines:
        """A result for every item, in the order of the request."""
        found: dict[int, dict[str, Any]] = {}
        after = 0
        while page := await flow.page(self._context, batch.merchant_id, batch.id, after=after, limit=flow.PAGE):
            found |= {result.number: item_data(result, position=position) for position, result in page}
            after = page[-1][0]
        asked = await flow.requested_items(self._context, batch) if len(found) < batch.count else []
        named = dict(enumerate(asked, start=1))
        return [found.get(number) or never_started(number, named.get(number)) for number in range(1, batch.count + 1)]

    async def _stream(self, call: Call, batch: Batch, *, after: int = 0, headers: Headers = ()) -> None:
        """Stream a line for the batch, one for each item after `after`, and the summary or the problem."""
        with self._waiting(call) as wait_scope:
            fields = [(b"content-type", NDJSON), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"), *headers]
            await call.send({"type": "http.response.start", "status": 200, "headers": fields})
            await _tell(call, [batch_data(await flow.read(self._context, batch.merchant_id, batch.id))])
            with wait_scope:
                await self._tell_items(call, batch, after=after)
            standing = await flow.read(self._context, batch.merchant_id, batch.id)
            data = batch_data(standing)
            if standing.batch.status is BatchStatus.TIMED_OUT:
                detail = _said(standing)
                said = problem(DEADLINE_PASSED, code="batch_deadline_passed", detail=detail, request_id=call.request_id)
                await _tell(call, [{**said, "resume_token": data["resume_token"], "batch": data}], more=False)
            else:
                await _tell(call, [{**data, "object": "summary"}], more=False)

    async def _tell_items(self, call: Call, batch: Batch, *, after: int) -> None:
        """Send results as they become known, and the batch's progress if that takes long, until it has ended."""
        told_at = trio.current_time()
        async for page in flow.follow(self._context, batch, after=after):
            for begin in range(0, len(page), LINES):
                await _tell(call, [item_data(result, position=position) for position, result in page[begin : begin + LINES]])
            if page:
                told_at = trio.current_time()
            elif trio.current_time() - told_at >= PROGRESS_SECONDS:
                standing = await flow.read(self._context, batch.merchant_id, batch.id)
                await _tell(call, [{**batch_data(standing), "object": "progress"}])
                told_at = trio.current_time()


async def _tell(call: Call, lines: Lines, *, more: bool = True) -> None:
    body = b"".join([msgspec.json.encode(line) + b"\n" for line in lines])
    await call.send({"type": "http.response.body", "body": body, "more_body": more})


async def _cancel_when_gone(call: Call, scope: trio.CancelScope) -> None:
    await call.until_gone()
    scope.cancel()


def decode_batch_id(text: str) -> BatchId:
    """The batch that a path names. Raises `NotFound`."""
    try:
        return BatchId(decode_id(BATCH, text))
    except InvalidId as error:
        raise NotFound("no such batch") from error


def _require_scopes(call: Call, items: Sequence[Item]) -> None:
    """Raise `Forbidden` for a key that could not do by itself what its batch does."""
    assert call.caller is not None
    for kind in dict.fromkeys(item.type for item in items):
        call.caller.require(KeyScope.REFUNDS_WRITE if kind is ItemType.REFUND else KeyScope.PAYMENTS_WRITE)


def _wants_lines(call: Call) -> bool:
    """Return whether the Accept header (RFC 9110, 12.5.1) asks for NDJSON. A request for an immediate reply gets no stream."""
    if call.scope["method"] == "HEAD" or reply_within_seconds(call.scope) == 0:
        return False
    for accepted in (header(call.scope, b"accept") or "").lower().split(","):
        kind, *parameters = (part.strip() for part in accepted.split(";"))
        if kind == "application/x-ndjson":
            return not any(re.fullmatch(r"q=0(\.0*)?", one) for one in parameters)
    return False


def _read_position(fields: dict[str, str]) -> int:
    position = read_number(fields.get("after", "0"))
    if position is None or position > POSITION_MAX:
        raise Unprocessable("after must be the position of the last item that you have", code="invalid_query", path="after")
    return position


def _said(standing: Standing) -> str:
    """The summary of a batch whose deadline has passed."""
    counts, batch = standing.counts, standing.batch
    unknown, never = counts.get(ItemStatus.UNKNOWN, 0), counts.get(ItemStatus.NOT_STARTED, 0)
    return (
        f"the deadline of {batch.deadline_seconds} s passed: {batch.count - unknown - never} of {batch.count} items are done, "
        f"{unknown} are UNKNOWN and {never} were never started. Do not repeat the request: POST the resume token to "
        f"/v1/batches/{encode_id(BATCH, batch.id)}/resume, and nothing is charged twice"
    )
