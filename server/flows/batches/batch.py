"""Batches as merchants see them: accept, follow, stop, resume. `server.jobs.batches.runner` runs them.

A batch is durable before any reply, and any worker can answer for it from the table.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import msgspec
import trio

from core.batch import RESUMABLE_DAYS, BatchId, BatchStatus, ItemResult, ItemStatus, parse_resume_token
from core.errors import Conflict, DatabaseUnavailable, InvalidId, NotFound, Overloaded, Unprocessable
from core.idempotency import KeyedOperation, Mismatch
from core.ids import MerchantId
from server.db.batches.batches import Batch, add_batch, count_running, find_batch, find_items, resume_batch, stop_batch
from server.db.batches.items import count_results, list_results
from server.db.payments.idempotency_keys import find_key
from server.flows.batches.item import Item
from server.flows.contexts import Batches
from server.flows.idempotency import Request
from server.sealing import SealError

RUNNING_MAX = 4
"""The most batches of one merchant that may run at the same time."""

FOLLOW_SECONDS = 0.2
PAGE = 500
FAILURES_MAX = 6
_PLACE = "batches.sealed_items"
_items = msgspec.json.Decoder(list[Item])


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The deadline and concurrency of a batch."""

    deadline_seconds: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A batch, and the number of its items by result."""

    batch: Batch
    counts: dict[ItemStatus, int]


async def accept(context: Batches, request: Request, items: Sequence[Item], terms: Terms) -> tuple[Batch, bool] | Mismatch:
    """Accept a batch, once per key. Returns it and whether it was known already, or `Mismatch` if the key was used for another
    request. Raises `Conflict`, `Overloaded`.
    """
    now = context.now()
    batch = Batch(
        merchant_id=request.merchant_id,
        id=BatchId(request.id),
        status=BatchStatus.RUNNING,
        count=len(items),
        concurrency=terms.concurrency,
        deadline_seconds=terms.deadline_seconds,
        deadline_at=now + timedelta(seconds=terms.deadline_seconds),
        created_at=now,
        started_at=now,
    )
    sealed = context.sealer.seal(msgspec.json.encode(items).decode(), table=_PLACE, row=batch.id, merchant=request.merchant_id)
    async with context.pool.connection() as connection:
        async with connection.atomic():
            running = await count_running(connection, request.merchant_id)
            stored = await find_key(connection, request.merchant_id, request.key)  # after the lock, to find an equal request
            if stored is None:
                _require_room(running)
                await add_batch(connection, batch, sealed_items=sealed, key=request.key, fingerprint=request.fingerprint)
        if stored is None:
            context.wakeup.wake()
            return batch, False
        if stored.fingerprint != request.fingerprint or stored.operation is not KeyedOperation.BATCH:
            return Mismatch()
        known = await find_batch(connection, request.merchant_id, BatchId(stored.resource_id))
    return (known, True) if known is not None else Mismatch()


def open_items(context: Batches, batch: Batch, sealed: bytes) -> list[Item]:
    """Open the sealed items. Raises `SealError`, `msgspec.DecodeError`."""
    return _items.decode(context.sealer.open(sealed, table=_PLACE, row=batch.id, merchant=batch.merchant_id))


async def read(context: Batches, merchant_id: MerchantId, batch_id: BatchId) -> Standing:
    """Return the current state of a batch. Raises `NotFound`."""
    async with context.pool.connection() as connection:
        batch = await find_batch(connection, merchant_id, batch_id)
        if batch is None:
            raise NotFound("no such batch")
        counts = await count_results(connection, merchant_id, batch_id)
    not_started = batch.count - sum(counts.values())
    return Standing(batch, {**counts, ItemStatus.NOT_STARTED: not_started} if not_started else counts)


async def page(
    context: Batches, merchant_id: MerchantId, batch_id: BatchId, *, after: int, limit: int
) -> list[tuple[int, ItemResult]]:
    """Results after a position, in the order in which they became known."""
    async with context.pool.connection() as connection:
        return await list_results(connection, merchant_id, batch_id, after=after, limit=limit)


async def requested_items(context: Batches, batch: Batch) -> list[Item]:
    """The items of a batch; empty if they were deleted or cannot be read any more."""
    async with context.pool.connection() as connection:
        sealed = await find_items(connection, batch.merchant_id, batch.id)
    try:
        return open_items(context, batch, sealed) if sealed is not None else []
    except (SealError, msgspec.DecodeError):
        return []


async def follow(context: Batches, batch: Batch, *, after: int = 0) -> AsyncIterator[list[tuple[int, ItemResult]]]:
    """Yield results after a position, in pages, as they become known, until the batch has ended.

    Yields an empty page now and then while nothing is new or the database is briefly unavailable. Raises `DatabaseUnavailable`
    and `Overloaded` if that lasts.
    """
    failures = 0
    while True:
        found: list[tuple[int, ItemResult]] = []
        now: Batch | None = batch
        try:
            async with context.pool.connection() as connection:
                now = await find_batch(connection, batch.merchant_id, batch.id)  # before the results, so that none is missed
                found = await list_results(connection, batch.merchant_id, batch.id, after=after, limit=PAGE)
            failures = 0
        except (DatabaseUnavailable, Overloaded):
            failures += 1
            if failures >= FAILURES_MAX:
                raise
        if found:
            after = found[-1][0]
        yield found
        if len(found) < PAGE:
            if not failures and (now is None or now.status is not BatchStatus.RUNNING):
                return
            await trio.sleep(FOLLOW_SECONDS * (1 + 10 * failures))


async def wait(context: Batches, batch: Batch, *, seconds: float) -> None:
    """Wait until the batch has ended, or that many seconds have passed. Also waits out a database that is unavailable."""
    with trio.move_on_after(seconds):
        while True:
            try:
                async with context.pool.connection() as connection:
                    now = await find_batch(connection, batch.merchant_id, batch.id)
                if now is None or now.status is not BatchStatus.RUNNING:
                    return
            except (DatabaseUnavailable, Overloaded):
                pass
            await trio.sleep(FOLLOW_SECONDS)


async def stop(context: Batches, merchant_id: MerchantId, batch_id: BatchId) -> Standing:
    """Ask for no more items to be started; those under way are finished. Repeating it changes nothing. Raises `NotFound`."""
    async with context.pool.connection() as connection:
        await stop_batch(connection, merchant_id, batch_id)
    return await read(context, merchant_id, batch_id)


async def resume(context: Batches, merchant_id: MerchantId, batch_id: BatchId, token: str, wanted: Terms | None) -> Batch:
    """Continue the unfinished items: settle UNKNOWN ones and start those that were never started.

    A token is good for one resumption. Repeating it returns the batch that it has resumed. Raises `NotFound`, `Conflict`,
    `Unprocessable`.
    """
    refusal = Unprocessable("this resume token belongs to another batch", code="resume_token_wrong", path="$.resume_token")
    try:
        of, run = parse_resume_token(token)
    except InvalidId as error:
        raise refusal from error
    if of != batch_id or run < 1:
        raise refusal
    batch = (await read(context, merchant_id, batch_id)).batch
    if run > batch.run:
        raise refusal
    if run < batch.run - 1:
        raise Conflict("the batch has been resumed again since: read it for its latest token", code="batch_resumed")
    if run == batch.run - 1:
        return batch
    if batch.status is BatchStatus.RUNNING:
        raise Conflict("the batch is running", code="batch_running")
    now = context.now()
    if not batch.is_resumable or now - batch.created_at >= timedelta(days=RESUMABLE_DAYS):
        why = "every item is done" if batch.status is BatchStatus.COMPLETED else f"it was accepted {RESUMABLE_DAYS} days ago"
        raise Conflict(f"the batch cannot be resumed: {why}", code="batch_not_resumable")
    terms = wanted or Terms(deadline_seconds=batch.deadline_seconds, concurrency=batch.concurrency)
    resumed = replace(
        batch,
        status=BatchStatus.RUNNING,
        run=batch.run + 1,
        concurrency=terms.concurrency,
        deadline_seconds=terms.deadline_seconds,
        deadline_at=now + timedelta(seconds=terms.deadline_seconds),
        started_at=now,
        finished_at=None,
        is_stopping=False,
        is_resumable=False,
    )
    async with context.pool.connection() as connection:
        async with connection.atomic():
            _require_room(await count_running(connection, merchant_id))
            is_begun = await resume_batch(connection, resumed, created_after=now - timedelta(days=RESUMABLE_DAYS))
        known = await find_batch(connection, merchant_id, batch_id)
    if known is None or known.run != resumed.run:
        raise Overloaded("the batch has just changed: try again")
    if is_begun:
        context.wakeup.wake()
    return known


def _require_room(running: int) -> None:
    if running >= RUNNING_MAX:
        raise Conflict(f"{RUNNING_MAX} batches are running: wait until one has ended", code="too_many_batches")
