"""A worker's access to PostgreSQL: a pool for reads and three group committers for writes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import trio

from core.idempotency import StoredKey
from server.db.group_commit import Committer, Observe
from server.db.payments.change_row import ChangeRow
from server.db.payments.changes import Applied, ChangeGroup, Lost
from server.db.payments.creations import Creation, CreationGroup, OrderIsLive
from server.db.pool import Pool, open_pool
from server.db.roles import Role
from server.db.webhooks.deliveries import DeliveryResult, DeliveryResultGroup

RESULT_GATHER_SECONDS = 0.25
"""Results of deliveries are gathered for this long. Those in memory when a worker is killed are delivered again."""


@dataclass(frozen=True, slots=True)
class Database:
    """One worker's access to PostgreSQL."""

    pool: Pool
    creations: Committer[Creation, StoredKey | OrderIsLive | None]
    changes: Committer[ChangeRow, Applied | Lost]
    change_group: ChangeGroup
    delivery_results: Committer[DeliveryResult, bool]


@asynccontextmanager
async def open_database(
    conninfo: str,
    *,
    worker_id: UUID,
    pool_size: int,
    delivery_lease_seconds: float,
    observe: Callable[[str, int, float], None] | None = None,
    pause_seconds: Callable[[], float] = lambda: 0.0,
    found_read_only: Callable[[], None] = lambda: None,
) -> AsyncIterator[Database]:
    """Open the pool and run the committers. At the end of the block queued items are written before the committers close.

    `worker_id` owns the idempotency keys of new payments. `pause_seconds` is that of busy committers. `found_read_only` is called
    when a session turns out to be read-only.
    `observe` is called for every group with the committer's name, the number of items and the seconds it took.
    """

    def observed(committer: str) -> Observe | None:
        return partial(observe, committer) if observe is not None else None

    async with (
        open_pool(conninfo, size=pool_size, role=Role.APP, found_read_only=found_read_only) as pool,
        trio.open_nursery() as committers,
    ):
        change_group = ChangeGroup(delivery_lease_seconds=delivery_lease_seconds)
        database = Database(
            pool,
            Committer(
                CreationGroup(worker_id=worker_id),
                conninfo,
                role=Role.APP,
                observe=observed("creations"),
                pause_seconds=pause_seconds,
            ),
            Committer(change_group, conninfo, role=Role.APP, observe=observed("changes"), pause_seconds=pause_seconds),
            change_group,
            Committer(
                DeliveryResultGroup(),
                conninfo,
                role=Role.APP,
                observe=observed("delivery_results"),
                gather_seconds=RESULT_GATHER_SECONDS,
            ),
        )
        await committers.start(database.creations.run)
        await committers.start(database.changes.run)
        await committers.start(database.delivery_results.run)
        try:
            yield database
        finally:
            committers.cancel_scope.cancel()
