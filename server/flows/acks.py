"""What readers have acknowledged, gathered and written together.

A lost one means that a consumer is sent again what it has dealt with, which is what at least once promises anyway.
"""

from collections.abc import Callable
from datetime import datetime

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from core.ids import MerchantId
from server.db.pool import Pool
from server.db.streams import write_acks

ACK_SECONDS = 0.5
ACKS_AT_ONCE_MAX = 1_000
ACKS_MAX = 100_000
LAST_ACKS_SECONDS = 3.0
_log = structlog.get_logger()


class Acks:
    """What this worker's readers have acknowledged, on its way into the table. `run` writes it."""

    def __init__(self, pool: Pool, *, now: Callable[[], datetime]) -> None:
        self._pool = pool
        self._now = now
        self._waiting: dict[tuple[MerchantId, str], int] = {}

    def note(self, merchant_id: MerchantId, consumer: str, seq: int) -> None:
        """Everything up to this event was dealt with. Never waits."""
        key = (merchant_id, consumer)
        if key in self._waiting or len(self._waiting) < ACKS_MAX:
            self._waiting[key] = max(seq, self._waiting.get(key, 0))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, and then what is left."""
        task_status.started()
        try:
            while True:
                await trio.sleep(ACK_SECONDS)
                await self.write()
        finally:
            with trio.move_on_after(LAST_ACKS_SECONDS, shield=True):
                await self.write()

    async def write(self) -> None:
        """Write what is waiting; what cannot be written is tried again."""
        while self._waiting:
            piece = dict(list(self._waiting.items())[:ACKS_AT_ONCE_MAX])
            try:
                async with self._pool.connection() as connection:
                    acks = [(merchant_id, consumer, seq) for (merchant_id, consumer), seq in piece.items()]
                    await write_acks(connection, acks, now=self._now())
            except (DatabaseUnavailable, Overloaded) as error:
                _log.warning("acknowledgements cannot be written yet", error=str(error))
                return
            for key, seq in piece.items():
                if self._waiting.get(key) == seq:
                    del self._waiting[key]
