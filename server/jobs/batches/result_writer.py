"""Writes the results of a batch's items, in groups, under the lease of the worker that runs the batch.

A result is in the table before the batch ends. A write that fails is repeated, which changes nothing. Once the lease is lost
nothing is written.
"""

from collections import deque
from collections.abc import Callable

import structlog
import trio

from core.batch import BATCH, ItemResult
from core.errors import DatabaseUnavailable, Overloaded
from core.ids import encode_id
from server.db.batches.batches import ClaimedBatch
from server.db.batches.items import write_results
from server.flows.contexts import Storage

WRITE_MAX = 500
RETRY_SECONDS = 0.5
_log = structlog.get_logger()


class Writer:
    """The writer of one batch. It calls `stop` when a write has found that the batch is to be stopped."""

    def __init__(self, context: Storage, claimed: ClaimedBatch, stop: Callable[[], None]) -> None:
        self._context = context
        self._claimed = claimed
        self._stop = stop
        self._position = claimed.position
        self._results: deque[ItemResult] = deque()
        self._is_wanted = trio.Event()
        self._is_finished = trio.Event()
        self._is_last = self._is_lost = False

    def put(self, result: ItemResult) -> None:
        """Queue a result."""
        self._results.append(result)
        self._is_wanted.set()

    async def finish(self) -> None:
        """Wait until everything is written."""
        self._is_last = True
        self._is_wanted.set()
        await self._is_finished.wait()

    def lose(self, run: trio.CancelScope) -> None:
        """Stop writing, because another worker has the batch or will have it."""
        self._is_lost = True
        _log.warning("the lease of a batch was lost", batch=encode_id(BATCH, self._claimed.batch.id))
        run.cancel()

    async def run(self, run: trio.CancelScope) -> None:
        """Write until `finish`. Cancels the run if the lease is lost."""
        while not self._is_finished.is_set():
            await self._is_wanted.wait()
            self._is_wanted = trio.Event()
            while self._results:
                try:
                    is_held = await self.write()
                except (DatabaseUnavailable, Overloaded) as error:
                    _log.warning("the results of a batch cannot be written yet", error=str(error))
                    await trio.sleep(RETRY_SECONDS)
                    continue
                if not is_held:
                    self.lose(run)
                    return
            if self._is_last:
                self._is_finished.set()

    async def write(self) -> bool:
        """Write a group of the queued results. Returns whether the lease is held. Raises `DatabaseUnavailable`, `Overloaded`."""
        results = [self._results[number] for number in range(min(len(self._results), WRITE_MAX))]
        if self._is_lost or not results:
            return not self._is_lost
        async with self._context.pool.connection() as connection:
            is_stopping = await write_results(connection, self._claimed, results, after=self._position, now=self._context.now())
        if is_stopping is None:
            return False
        self._position += len(results)
        for _ in results:
            self._results.popleft()
        if is_stopping:
            self._stop()
        return True
