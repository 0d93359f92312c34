"""Carries out batches: claims one, runs its items concurrently under the batch's deadline, and writes what comes of them.

    Batches.run └─ a task a batch └─ its lease, the writer of its results, and its items, one task each

Invariants: an item is started once per claim, and only while the batch has time; each item ends by its own cancel scope at the
deadline, and is then recorded as what is known of it; the batch ends after the last result is written. A worker that ends, or
loses its lease, writes nothing more: another one goes on under the original deadline, and finds out what was done by the items'
idempotency keys (`server.flows.batch_item`).
"""

from collections import deque
from datetime import timedelta

import structlog
import trio

from core.batch import BATCH, UNFINISHED, BatchStatus, ItemResult, ItemStatus
from core.errors import DatabaseUnavailable, NotFound, Overloaded
from core.ids import encode_id
from server.db.alerts import Alert, note_alert
from server.db.batch_items import count_results, finished_numbers, write_results
from server.db.batches import ClaimedBatch, claim_batch, end_batch, let_go, renew_lease
from server.db.merchants import Merchant, find_merchant
from server.flows.batch import open_items
from server.flows.batch_item import Item, Place, carry_out, cut_off, leave
from server.flows.services import Services
from server.jobs.pace import Pace
from server.new_ids import uuid7
from server.sealing import SealError

RUNNING_MAX = 16
"""How many batches a worker carries out at the same time."""

LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0
RECORD_SECONDS = 10.0
"""How long recording what was cut off may take."""

LET_GO_SECONDS = 2.0
RETRY_SECONDS = 0.5
WRITE_MAX = 500
_PASSING = (DatabaseUnavailable, Overloaded)
_log = structlog.get_logger()


class Batches:
    """The job."""

    def __init__(self, services: Services, *, sweep_seconds: float) -> None:
        self._services = services
        self._sweep_seconds = sweep_seconds
        self._runs: set[_Run] = set()
        self._is_draining = False
        self._idle = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for batches, and carry them out, until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                claimed = await self._claim() if len(self._runs) < RUNNING_MAX and not self._is_draining else None
                if claimed is not None:
                    run = _Run(self._services, claimed)
                    self._runs.add(run)
                    nursery.start_soon(self._carry_out, run)
                else:
                    await self._services.batch_bell.wait(seconds=self._sweep_seconds)

    async def drain(self, *, seconds: float) -> None:
        """Start nothing more, and wait for what is under way; what is left goes to another worker."""
        self._is_draining = True
        for run in self._runs:
            run.drain()
        with trio.move_on_after(seconds):
            while self._runs:
                await self._idle.wait()

    async def _claim(self) -> ClaimedBatch | None:
        try:
            async with self._services.db.pool.connection() as connection:
                return await claim_batch(connection, uuid7(), lease_seconds=LEASE_SECONDS)
        except _PASSING as error:
            _log.warning("cannot look for batches", error=str(error))
            return None

    async def _carry_out(self, run: "_Run") -> None:
        try:
            await run.carry_out()
        except Exception:  # noqa: BLE001 - one batch must not end the job; its lease brings it back
            _log.exception("a batch could not be carried out", batch=run.name)
        finally:
            self._runs.discard(run)
            self._idle.set()
            self._idle = trio.Event()
            self._services.batch_bell.ring()  # there is room for another


class _Run:
    """One batch in this worker's hands."""

    def __init__(self, services: Services, claimed: ClaimedBatch) -> None:
        self.name = encode_id(BATCH, claimed.batch.id)
        self._services = services
        self._claimed = claimed
        self._position = claimed.position
        self._results: deque[ItemResult] = deque()
        self._is_wanted = trio.Event()
        self._is_written = trio.Event()
        self._are_items_over = False
        self._starting = trio.CancelScope()
        self._is_stopping = claimed.batch.is_stopping
        self._is_draining = self._has_failed = False
        self._under_way = 0
        self._places = trio.Semaphore(claimed.batch.concurrency)

    def drain(self) -> None:
        """Start no more items."""
        self._is_draining = True
        self._starting.cancel()

    async def carry_out(self) -> None:
        """Carry it out until it has ended, or is another worker's. Raises `FlorinError` where that cannot be done now."""
        services, claimed = self._services, self._claimed
        deadline = trio.current_time() + (claimed.batch.deadline_at - services.now()) / timedelta(seconds=1)
        try:
            merchant, done = await self._read()
            items = self._items(is_late=trio.current_time() >= deadline)
            left = [(number, item) for number, item in enumerate(items, start=1) if number not in done]
            async with trio.open_nursery() as keepers:
                keepers.start_soon(self._keep_lease, keepers.cancel_scope)
                keepers.start_soon(self._write_results, keepers.cancel_scope)
                await self._run_items(merchant, left, deadline)
                self._are_items_over = True
                self._is_wanted.set()
                await self._is_written.wait()
                if not self._is_draining:
                    await self._end()
                keepers.cancel_scope.cancel()
        except Exception:
            self._has_failed = True  # its lease ends by itself, so that it is not tried again at once
            raise
        finally:
            if not self._has_failed:
                with trio.move_on_after(LET_GO_SECONDS, shield=True):
                    await self._let_go()

    async def _read(self) -> tuple[Merchant, set[int]]:
        """Whose batch it is, and which items have their results. Raises `NotFound`."""
        async with self._services.db.pool.connection() as connection:
            merchant = await find_merchant(connection, self._claimed.batch.merchant_id)
            done = await finished_numbers(connection, self._claimed)
        if merchant is None:
            raise NotFound("the batch's merchant is gone")
        return merchant, done

    def _items(self, *, is_late: bool) -> list[Item]:
        """What is to be done; nothing of what cannot be opened, once the time for it is over. Raises `SealError`."""
        try:
            return open_items(self._services, self._claimed.batch, self._claimed.sealed_items)
        except SealError:
            if is_late:
                return []
            raise

    async def _run_items(self, merchant: Merchant, left: list[tuple[int, Item]], deadline: float) -> None:
        pace = Pace(self._services.psps, merchant, lambda: self._under_way)
        if self._is_stopping:
            self._starting.cancel()
        async with trio.open_nursery() as items:
            self._starting.deadline = deadline
            with self._starting:
                for number, item in left:
                    await self._places.acquire()
                    await pace.turn(item)
                    self._under_way += 1
                    items.start_soon(self._run_item, Place(merchant, self._claimed.batch.id, number), item, deadline)

    async def _run_item(self, place: Place, item: Item, deadline: float) -> None:
        result: ItemResult | None = None
        try:
            with trio.move_on_at(deadline) as scope:
                try:
                    result = await carry_out(self._services, place, item)
                except Exception:  # noqa: BLE001 - one item must not end the others
                    _log.exception("an item of a batch failed in an unexpected way", batch=self.name, item=place.number)
                    result = cut_off(place, item, code="internal_error", detail="something went wrong on our side")
            if scope.cancelled_caught and result is None:
                result = await self._leave(place, item)
        finally:
            self._under_way -= 1
            self._places.release()
        if result is not None:
            self._results.append(result)
            self._is_wanted.set()

    async def _leave(self, place: Place, item: Item) -> ItemResult | None:
        """Record what is known of an item that the deadline has cut off."""
        with trio.move_on_after(RECORD_SECONDS, shield=True):
            while True:
                try:
                    return await leave(self._services, place, item)
                except _PASSING:
                    await trio.sleep(RETRY_SECONDS)
        return cut_off(place, item, code="deadline_passed", detail="the batch's deadline passed, and the database was away")

    async def _write_results(self, run: trio.CancelScope) -> None:
        while not self._is_written.is_set():
            await self._is_wanted.wait()
            self._is_wanted = trio.Event()
            while self._results:
                await self._write(run)
            if self._are_items_over:
                self._is_written.set()

    async def _write(self, run: trio.CancelScope) -> None:
        """Write the results that are there; again where the database is away for a moment."""
        results = [self._results[number] for number in range(min(len(self._results), WRITE_MAX))]
        try:
            async with self._services.db.pool.connection() as connection:
                is_held = await write_results(connection, self._claimed, results, after=self._position, now=self._services.now())
        except _PASSING as error:
            _log.warning("results of a batch have to wait", batch=self.name, error=str(error))
            await trio.sleep(RETRY_SECONDS)
            return
        if not is_held:
            self._lose(run)
            return
        self._position += len(results)
        for _ in results:
            self._results.popleft()

    async def _keep_lease(self, run: trio.CancelScope) -> None:
        held_until = trio.current_time() + LEASE_SECONDS
        while True:
            await trio.sleep(RENEW_SECONDS if not self._is_stopping else LEASE_SECONDS / 2)
            asked_at = trio.current_time()
            try:
                async with self._services.db.pool.connection() as connection:
                    is_stopping = await renew_lease(connection, self._claimed, lease_seconds=LEASE_SECONDS)
            except _PASSING as error:
                _log.warning("the lease of a batch cannot be renewed", batch=self.name, error=str(error))
                if trio.current_time() > held_until:
                    self._lose(run)
                continue
            if is_stopping is None:
                self._lose(run)
                return
            held_until = asked_at + LEASE_SECONDS
            if is_stopping and not self._is_stopping:
                self._is_stopping = True
                self._starting.cancel()

    def _lose(self, run: trio.CancelScope) -> None:
        """Another worker has it, or will have: leave everything as it is."""
        if not self._are_items_over or self._results:
            _log.warning("a batch was lost to another worker", batch=self.name)
        self._results.clear()
        run.cancel()

    async def _end(self) -> None:
        """End the batch, and tell the people who run this where its deadline has passed."""
        services, claimed = self._services, self._claimed
        batch = claimed.batch
        while True:
            now = services.now()
            try:
                async with services.db.pool.connection() as connection:
                    counts = await count_results(connection, batch.merchant_id, batch.id)
                    never = batch.count - sum(counts.values())
                    is_resumable = bool(never or any(counts.get(one) for one in UNFINISHED))
                    status = BatchStatus.COMPLETED
                    if is_resumable and self._is_stopping:
                        status = BatchStatus.STOPPED
                    elif is_resumable and now >= batch.deadline_at:
                        status = BatchStatus.TIMED_OUT
                        await note_alert(connection, _alert(claimed, counts, never), now=now)
                    await end_batch(connection, claimed, status, is_resumable=is_resumable, now=now)
            except _PASSING as error:
                _log.warning("the end of a batch has to wait", batch=self.name, error=str(error))
                await trio.sleep(RETRY_SECONDS)
            else:
                _log.info("a batch has ended", batch=self.name, status=status.value, never_started=never, **_named(counts))
                return

    async def _let_go(self) -> None:
        try:
            if self._results:
                await self._write(trio.CancelScope())
            async with self._services.db.pool.connection() as connection:
                await let_go(connection, self._claimed)
        except _PASSING as error:
            _log.warning("the lease of a batch will end by itself", batch=self.name, error=str(error))


def _named(counts: dict[ItemStatus, int]) -> dict[str, int]:
    return {status.value.lower(): count for status, count in counts.items()}


def _alert(claimed: ClaimedBatch, counts: dict[ItemStatus, int], never: int) -> Alert:
    batch = claimed.batch
    unknown = counts.get(ItemStatus.UNKNOWN, 0)
    name = encode_id(BATCH, batch.id)
    done = sum(counts.values()) - unknown
    said = ", ".join(f"{count} {status}" for status, count in _named(counts).items())
    return Alert(
        merchant_id=batch.merchant_id,
        key=f"batch_deadline:{name}:{batch.run}",
        kind="batch_deadline",
        title=f"batch {name} passed its deadline of {batch.deadline_seconds} s: {done} of {batch.count} items are done",
        detail=f"{said or 'nothing is done'}; {never} never started. UNKNOWN payments are found out by themselves; "
        "the merchant can resume the rest with the resume token of the reply.",
    )
