"""Claims batches and runs each (`server.jobs.batches.run`), a bounded number at a time.

    Batches.run
    └─ one task a batch
       └─ its lease, the writer of its results, and its items, one task each

When a worker ends or loses a batch's lease, another one continues under the original deadline and finds what was done by the
items' idempotency keys (`server.flows.batches.item`).
"""

from dataclasses import replace

import structlog
import trio

from core.fair_queue import Urgency
from server.db.batches.batches import ClaimedBatch, claim_batch
from server.db.batches.items import settle_open_items
from server.flows import contexts
from server.jobs.batches.run import LEASE_SECONDS, PASSING, Run
from server.jobs.due_work import DueWork
from server.uuid7 import uuid7

RUNNING_MAX = 16
"""The number of batches that a worker runs at the same time."""
LATE_MAX = 4
"""The number of further batches whose deadline has passed, so that they end."""

SETTLE_SECONDS = 2.0
SETTLE_MAX = 500
_log = structlog.get_logger()


class Batches:
    """The job: it claims and runs batches, and follows the items that were open when theirs ended."""

    def __init__(self, context: contexts.Batches, payments: contexts.Payments, *, sweep_seconds: float, work: DueWork) -> None:
        self._context = context
        self._work = work
        self._payments = replace(payments, urgency=Urgency.BATCH)
        self._sweep_seconds = sweep_seconds
        self._runs: set[Run] = set()
        self._is_draining = self._was_woken = False
        self._settle_at = float("-inf")
        self._idle = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim batches and run them until canceled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                asked_at = trio.current_time()
                await self._settle_open_items()
                may_claim = self._may_be_waiting() and not self._is_draining and len(self._runs) < RUNNING_MAX + LATE_MAX
                claimed = await self._claim() if may_claim else None
                if claimed is None:
                    self._was_woken = await self._context.wakeup.wait(seconds=self._sweep_seconds)
                    continue
                run = Run(self._context, self._payments, claimed, held_until=asked_at + LEASE_SECONDS)
                self._runs.add(run)
                if self._is_draining:  # that began meanwhile
                    run.drain()
                nursery.start_soon(self._carry_out, run)

    async def drain(self, *, seconds: float) -> None:
        """Start nothing more and wait for what is under way. The rest goes to another worker."""
        self._is_draining = True
        for run in self._runs:
            run.drain()
        with trio.move_on_after(seconds):
            while self._runs:
                await self._idle.wait()

    def _may_be_waiting(self) -> bool:
        """Return whether a batch may be waiting: the table says so, or somebody here has just accepted one."""
        return self._work.now.batches or self._was_woken

    async def _claim(self) -> ClaimedBatch | None:
        """Claim a waiting batch; a busy worker claims only one whose deadline has passed, which costs little."""
        only_due_before = self._context.now() if len(self._runs) >= RUNNING_MAX else None
        try:
            async with self._context.pool.connection() as connection:
                return await claim_batch(connection, uuid7(), lease_seconds=LEASE_SECONDS, only_due_before=only_due_before)
        except PASSING as error:
            _log.warning("cannot look for batches", error=str(error))
            return None

    async def _settle_open_items(self) -> None:
        """Now and then, write how the open items of batches that are over have ended since."""
        if trio.current_time() < self._settle_at or not self._work.now.open_items:
            return
        self._settle_at = trio.current_time() + SETTLE_SECONDS
        try:
            async with self._context.pool.connection() as connection:
                settled = await settle_open_items(connection, limit=SETTLE_MAX)
        except PASSING as error:
            _log.warning("cannot settle open items of batches", error=str(error))
            return
        if settled == SETTLE_MAX:
            self._settle_at = trio.current_time()

    async def _carry_out(self, run: Run) -> None:
        try:
            await run.carry_out()
        except Exception:  # noqa: BLE001 - one batch must not end the job; its lease brings it back
            _log.exception("a batch could not be run", batch=run.name)
        finally:
            self._runs.discard(run)
            self._idle.set()
            self._idle = trio.Event()
            self._context.wakeup.wake()  # there is room for another
