"""Acknowledgements of readers, gathered and written together.

If one is lost, its consumer receives again what it has already handled, which at-least-once delivery allows.
"""

from collections.abc import Callable
from datetime import datetime

import structlog
import trio

from core.ids import MerchantId
from server.db.events.consumers import Ack, write_acks
from server.db.pool import Pool

ACK_SECONDS = 0.5
ACKS_AT_ONCE_MAX = 1_000
ACKS_MAX = 100_000
LAST_ACKS_SECONDS = 1.0
_log = structlog.get_logger()


class Acks:
    """Acknowledgements of this worker's readers that are not yet in the table. `run` writes them."""

    def __init__(self, pool: Pool, *, now: Callable[[], datetime]) -> None:
        self._pool = pool
        self._now = now
        self._waiting: dict[tuple[MerchantId, str], Ack] = {}
        self._has_some = trio.Event()

    def note(self, merchant_id: MerchantId, consumer: str, seq: int) -> None:
        """Note that everything up to this event was handled. Never waits."""
        key = (merchant_id, consumer)
        known = self._waiting.get(key)
        if known is None and len(self._waiting) >= ACKS_MAX:
            return
        if known is None or known.seq < seq:
            self._waiting[key] = Ack(merchant_id, consumer, seq, self._now())
            self._has_some.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until canceled, and then what is left."""
        task_status.started()
        try:
            while True:
                await self._has_some.wait()
                await trio.sleep(ACK_SECONDS)
                self._has_some = trio.Event()
                await self.write()
        finally:
            with trio.move_on_after(LAST_ACKS_SECONDS, shield=True):
                await self.write()

    async def write(self) -> None:
        """Write what is waiting. What cannot be written is tried again."""
        acks, self._waiting = list(self._waiting.values()), {}
        try:
            while acks:
                async with self._pool.connection() as connection:
                    await write_acks(connection, acks[:ACKS_AT_ONCE_MAX])
                del acks[:ACKS_AT_ONCE_MAX]
        except Exception as error:  # noqa: BLE001 - no failure to write may end the worker
            _log.warning("acknowledgements cannot be written yet", error=f"{type(error).__name__}: {error}")
        finally:  # also when canceled: the final write tries again
            for ack in acks:
                known = self._waiting.get((ack.merchant_id, ack.consumer))
                if known is None or known.seq < ack.seq:
                    self._waiting[ack.merchant_id, ack.consumer] = ack
                    self._has_some.set()
