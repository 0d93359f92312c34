"""Runs one batch: carries out its items concurrently under its deadline, and writes their results.

Invariants: an item is started once per claim, and only while the batch has time; each item ends by its own cancel scope at the
deadline and is then recorded with what is known of it, like items that an earlier holder of the lease had begun; the batch ends
after the last result is written.
"""

from dataclasses import replace
from datetime import datetime, timedelta

import msgspec
import structlog
import trio

from core.batch import BATCH, TYPE_BY_OPERATION, UNFINISHED, BatchStatus, ItemResult, ItemStatus, ItemType, item_key
from core.errors import DatabaseUnavailable, NotFound, Overloaded
from core.idempotency import KeyedOperation
from core.ids import EventId, encode_id
from server import resources
from server.db.alerts import Alert, note_alert
from server.db.batches.batches import ClaimedBatch, end_batch, release_batch, renew_lease
from server.db.batches.items import count_results, finished_numbers
from server.db.connection import Connection
from server.db.events.events import append_event
from server.db.merchants.merchants import Merchant, find_merchant
from server.db.payments.idempotency_keys import known_keys
from server.flows import contexts
from server.flows.batches.batch import open_items
from server.flows.batches.cut_off import leave
from server.flows.batches.item import Item, Place, carry_out, cut_off
from server.jobs.batches.pacing import Pace
from server.jobs.batches.result_writer import RETRY_SECONDS, Writer
from server.sealing import SealError
from server.uuid7 import uuid7

LEASE_SECONDS = 10.0
RENEW_SECONDS = 1.0
RECORD_SECONDS = 10.0
"""The time for recording items that were cut off."""
LET_GO_SECONDS = 2.0
LOOKUPS_MAX = 64
PASSING = (DatabaseUnavailable, Overloaded)
_log = structlog.get_logger()


class Run:
    """One batch that this worker runs."""

    def __init__(
        self, context: contexts.Batches, payments: contexts.Payments, claimed: ClaimedBatch, *, held_until: float
    ) -> None:
        self.name = encode_id(BATCH, claimed.batch.id)
        self._context = context
        self._payments = payments
        self._claimed = claimed
        self._deadline = trio.current_time() + (claimed.batch.deadline_at - context.now()) / timedelta(seconds=1)
        self._held_until = held_until
        self._merchant: Merchant | None = None
        self._writer = Writer(context, claimed, self._stop)
        self._starting = trio.CancelScope(deadline=self._deadline)
        self._is_stopping = claimed.batch.is_stopping
        self._is_draining = self._has_failed = False
        self._under_way = 0
        self._places = trio.Semaphore(claimed.batch.concurrency)

    def drain(self) -> None:
        """Start no more items."""
        self._is_draining = True
        self._starting.cancel()

    def _stop(self) -> None:
        """Start no more items, because somebody stopped the batch."""
        self._is_stopping = True
        self._starting.cancel()

    async def carry_out(self) -> None:
        """Run the batch until it has ended or another worker has it. Raises `FlorinError` if it cannot be run now."""
        try:
            if self._is_stopping:
                self._starting.cancel()
            async with trio.open_nursery() as keepers:
                keepers.start_soon(self._keep_lease, keepers.cancel_scope)
                keepers.start_soon(self._writer.run, keepers.cancel_scope)
                self._merchant, done = await self._read()
                left = [(number, item) for number, item in enumerate(self._items(), start=1) if number not in done]
                begun = await self._run_items(left)
                if not self._is_draining:
                    await self._record_begun_items([one for one in left if one[0] not in begun])
                await self._writer.finish()
                if not self._is_draining:
                    await self._end()
                keepers.cancel_scope.cancel()
        except Exception:
            self._has_failed = True  # its lease ends by itself, so it is not tried again at once
            raise
        finally:
            if not self._has_failed:
                with trio.move_on_after(LET_GO_SECONDS, shield=True):
                    await self._release()

    async def _read(self) -> tuple[Merchant, set[int]]:
        """Read the batch's merchant, and which items have results. Raises `NotFound`."""
        async with self._context.pool.connection() as connection:
            merchant = await find_merchant(connection, self._claimed.batch.merchant_id)
            done = await finished_numbers(connection, self._claimed)
        if merchant is None:
            raise NotFound("the batch's merchant does not exist any more")
        return merchant, done

    def _items(self) -> list[Item]:
        """Open the items. If they cannot be read once the deadline has passed, return only their number: the keys tell which were
        begun. Raises `SealError`, `msgspec.DecodeError`.
        """
        try:
            return open_items(self._context, self._claimed.batch, self._claimed.sealed_items)
        except (SealError, msgspec.DecodeError):
            if trio.current_time() >= self._deadline:
                return [Item(type=ItemType.CHARGE)] * self._claimed.batch.count
            raise

    def _merchant_now(self) -> Merchant:
        assert self._merchant is not None
        return self._merchant

    def _is_over(self) -> bool:
        return self._is_stopping or self._is_draining

    def _place(self, number: int) -> Place:
        return Place(self._merchant_now, self._claimed.batch.id, number, self._is_over)

    async def _run_items(self, left: list[tuple[int, Item]]) -> set[int]:
        """Carry out the items that there is time for. Returns those that were begun."""
        pace = Pace(self._payments, lambda: self._under_way)
        begun: set[int] = set()
        async with trio.open_nursery() as items:
            with self._starting:
                for number, item in left:
                    await self._places.acquire()
                    await pace.turn(self._merchant_now, item)
                    self._under_way += 1
                    begun.add(number)
                    items.start_soon(self._run_item, number, item)
        return begun

    async def _run_item(self, number: int, item: Item) -> None:
        place = self._place(number)
        result: ItemResult | None = None
        try:
            with trio.move_on_at(self._deadline):
                try:
                    result = await carry_out(self._payments, place, item)
                except Exception:  # noqa: BLE001 - one item must not end the others
                    _log.exception("an item of a batch failed unexpectedly", batch=self.name, item=number)
                    result = cut_off(place, item, code="internal_error", detail="an internal error occurred")
            if result is None and not self._is_draining:
                result = await self._leave(place, item, is_ours=True)
        finally:
            self._under_way -= 1
            self._places.release()
        if result is not None:
            self._writer.put(result)

    async def _leave(self, place: Place, item: Item, *, is_ours: bool) -> ItemResult | None:
        """Record what is known of an item that was cut off by the deadline, or given up."""
        detail = "the batch's deadline passed, and the state of the item could not be read"
        with trio.move_on_after(RECORD_SECONDS):
            while True:
                try:
                    return await leave(self._payments, place, item, is_ours=is_ours)
                except PASSING:
                    await trio.sleep(RETRY_SECONDS)
                except Exception:  # noqa: BLE001 - one item must not end the others
                    _log.exception("the state of a batch item could not be read", batch=self.name, item=place.number)
                    break
        return cut_off(place, item, code="deadline_passed", detail=detail)

    async def _record_begun_items(self, left: list[tuple[int, Item]]) -> None:
        """Record items that an earlier holder of the lease may have begun without a result: they are not `NOT_STARTED`."""
        batch = self._claimed.batch
        keys = {item_key(batch.id, number): (number, item) for number, item in left if item.type is not ItemType.VERIFY}
        known: dict[str, KeyedOperation] = {}
        while keys:
            try:
                async with self._context.pool.connection() as connection:
                    known = await known_keys(connection, batch.merchant_id, list(keys))
                break
            except PASSING:
                await trio.sleep(RETRY_SECONDS)
        async with trio.open_nursery() as lookups:
            room = trio.Semaphore(LOOKUPS_MAX)
            for key, operation in known.items():
                number, item = keys[key]
                await room.acquire()
                lookups.start_soon(self._look_up, number, replace(item, type=TYPE_BY_OPERATION[operation]), room)

    async def _look_up(self, number: int, item: Item, room: trio.Semaphore) -> None:
        if result := await self._leave(self._place(number), item, is_ours=False):
            self._writer.put(result)
        room.release()

    async def _keep_lease(self, run: trio.CancelScope) -> None:
        while True:
            asked_at = trio.current_time()
            is_held: bool | None = None
            try:
                with trio.move_on_at(self._held_until):
                    is_held = await self._renew()
            except PASSING as error:
                _log.warning("the lease of a batch cannot be renewed", batch=self.name, error=str(error))
                if trio.current_time() < self._held_until:
                    await trio.sleep(RENEW_SECONDS)
                    continue
            if not is_held:
                self._writer.lose(run)
                return
            self._held_until = asked_at + LEASE_SECONDS
            await trio.sleep(RENEW_SECONDS)

    async def _renew(self) -> bool:
        """Renew the lease. Returns whether it is held. Also reloads the merchant, which may have been stopped or moved to another
        PSP.
        """
        async with self._context.pool.connection() as connection:
            is_stopping = await renew_lease(connection, self._claimed, lease_seconds=LEASE_SECONDS)
            self._merchant = await find_merchant(connection, self._claimed.batch.merchant_id) or self._merchant
        if is_stopping and not self._is_stopping:
            self._stop()
        return is_stopping is not None

    async def _end(self) -> None:
        """End the batch, and alert the operators if its deadline has passed."""
        while True:
            try:
                async with self._context.pool.connection() as connection, connection.atomic():
                    status, counts = await self._end_on(connection)
            except PASSING as error:
                _log.warning("the end of a batch cannot be recorded yet", batch=self.name, error=str(error))
                await trio.sleep(RETRY_SECONDS)
            else:
                _log.info("a batch has ended", batch=self.name, status=status.value, **_named(counts))
                return

    async def _end_on(self, connection: Connection) -> tuple[BatchStatus, dict[ItemStatus, int]]:
        batch, now = self._claimed.batch, self._context.now()
        counts = await count_results(connection, batch.merchant_id, batch.id)
        if never := batch.count - sum(counts.values()):
            counts[ItemStatus.NOT_STARTED] = never
        is_unfinished = any(counts.get(one) for one in UNFINISHED)
        is_late = trio.current_time() >= self._deadline
        status = BatchStatus.COMPLETED
        if is_unfinished and self._is_stopping:
            status = BatchStatus.STOPPED
        elif never or (is_unfinished and is_late):
            status = BatchStatus.TIMED_OUT
        is_ended = await end_batch(connection, self._claimed, status, is_resumable=is_unfinished, now=now)
        if is_ended:
            await self._tell(connection, status, counts, now)
        if is_ended and status is BatchStatus.TIMED_OUT:
            await note_alert(connection, _alert(self._claimed, counts), now=now)
        return status, counts

    async def _tell(self, connection: Connection, status: BatchStatus, counts: dict[ItemStatus, int], now: datetime) -> None:
        """Write the event of the batch's end."""
        batch = self._claimed.batch
        state = resources.BatchState(
            id=self.name,
            object="batch",
            status=status.value,  # type: ignore[arg-type] # it is over
            count=batch.count,
            outcomes={one.value: count for one, count in counts.items()},
            run=batch.run,
            finished_at=now,
        )
        await append_event(
            connection,
            batch.merchant_id,
            EventId(uuid7()),
            event_type=f"batch.{status.value.lower()}",
            data=msgspec.json.encode(state),
            now=now,
        )

    async def _release(self) -> None:
        try:
            await self._writer.write()
            async with self._context.pool.connection() as connection:
                await release_batch(connection, self._claimed)
        except PASSING as error:
            _log.warning("the lease of a batch could not be released and will expire", batch=self.name, error=str(error))


def _named(counts: dict[ItemStatus, int]) -> dict[str, int]:
    return {status.value.lower(): count for status, count in counts.items()}


def _alert(claimed: ClaimedBatch, counts: dict[ItemStatus, int]) -> Alert:
    batch = claimed.batch
    name = encode_id(BATCH, batch.id)
    done = batch.count - sum(counts.get(one, 0) for one in UNFINISHED)
    said = ", ".join(f"{count} {status}" for status, count in _named(counts).items())
    return Alert(
        merchant_id=batch.merchant_id,
        key=f"batch_deadline:{name}:{batch.run}",
        kind="batch_deadline",
        title=f"batch {name} passed its deadline of {batch.deadline_seconds} s: {done} of {batch.count} items are done",
        detail=f"{said}. UNKNOWN payments are settled automatically; the merchant can resume the rest with the resume token of "
        "the reply, or of GET /v1/batches.",
    )
