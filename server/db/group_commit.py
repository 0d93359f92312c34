"""Group commit: many callers' rows in one statement and one commit.

Callers submit an item and park. The writer takes all items that gathered during the last commit, writes them with one statement
on its own connection, and wakes each caller with its own result, which is on disk then (promise:durable-reply). An idle writer
adds no delay, and groups grow with the load. A busy one may pause between groups (`pause_seconds`), where several workers share
PostgreSQL: larger groups cost it less. Invariants:

- A statement in autocommit mode is one transaction: a group happens as a whole or not at all.
- At most one item per conflict key in a group; a second one waits for the next group, because inside one statement it would be
  lost.
- A caller canceled before its item is taken leaves nothing behind; after that the item is written although the caller is gone.
- Items that nobody waits for (`deposit`) gather for `gather_seconds`, unless one is urgent or a group is full.
- A group is shielded from cancellation, with a deadline. After a lost connection the writer first finds out which items were
  written (`recognize`), so an item is never written twice.
- A bad item does not fail the others: a group that the database refuses is bisected.
- At most `QUEUE_MAX` items wait; past that `submit` raises `Overloaded` before any side effect (promise:bounded).
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec
import outcome
import psycopg
import structlog
import trio
from psycopg import errors as pg_errors

from core.errors import DatabaseRefused, DatabaseUnavailable, Overloaded
from server.db.connection import Connection

GROUP_MAX = 256
BUSY_ITEMS = 16
"""A writer whose last group was smaller adds no delay; with 4 it would add some at half of the load that it can take."""

QUEUE_MAX = 4_096
REPLAN_SECONDS = 60.0
REPLAN_GROWTH = 2
GROUP_SECONDS = 10.0
RECONNECT_DELAYS_SECONDS = (0.0, 0.1, 0.5, 1.0, 2.0)
CONFLICT_RETRIES_MAX = 5

_CONNECTION_CLASSES = ("08", "53", "57")
"""SQLSTATE classes of a server that shuts down, lacks resources or ends a session. The rows are not at fault."""

_CONFLICTS = (pg_errors.SerializationFailure, pg_errors.DeadlockDetected)

Observe = Callable[[int, float], None]
"""Called for every group with the number of items and the seconds it took."""

Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result")
I = TypeVar("I")  # noqa: E741 - the invariant twin of Item
_log = structlog.get_logger()


class Statement(Protocol[Item, Result]):
    """The statement for one kind of item."""

    def conflict_key(self, item: Item) -> Hashable:
        """Two items with equal keys never share a group."""
        ...

    async def write(self, connection: Connection, items: Sequence[Item]) -> list[Result]:
        """Write all items in one transaction. Returns the results in the items' order."""
        ...

    async def recognize(self, connection: Connection, items: Sequence[Item]) -> list[Result | None]:
        """For each item, the result it would have had if it is in the database already, else None."""
        ...


class _Entry(msgspec.Struct, Generic[I]):
    """An item and the task that waits for its result, if any."""

    item: I
    task: trio.lowlevel.Task | None
    is_abandoned: bool = False

    def abandon(self, _: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        """Called when the task is canceled."""
        self.task = None
        self.is_abandoned = True
        return trio.lowlevel.Abort.SUCCEEDED


class Committer(Generic[I, Result]):
    """The writer of one kind of item. `run` owns its connection; `submit` may be called from any task."""

    def __init__(
        self,
        statement: Statement[I, Result],
        conninfo: str,
        *,
        role: str | None = None,
        observe: Observe | None = None,
        gather_seconds: float = 0.0,
        pause_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._statement = statement
        self._conninfo = conninfo
        self._role = role
        self._observe = observe
        self._gather_seconds = gather_seconds
        self._pause_seconds = pause_seconds
        self._last_items = 0
        self._queue: deque[_Entry[I]] = deque()
        self._wakeup = trio.Event()
        self._hurry = trio.Event()
        self._is_writing = False
        self._connection: Connection | None = None
        self._planned_at = float("-inf")
        self._planned_items = 0
        self.groups = 0
        self.items = 0

    async def submit(self, item: I) -> Result:
        """Write an item and return its own result.

        Raises `Overloaded` before any side effect, `DatabaseUnavailable` if it is unknown whether the item was written, or
        `DatabaseRefused` if the database refused this item.
        """
        entry = self._add(item, trio.lowlevel.current_task())
        self._hurry.set()
        result: Result = await trio.lowlevel.wait_task_rescheduled(entry.abandon)
        return result

    def deposit(self, item: I, *, at_once: bool = False) -> None:
        """Have an item written soon, or `at_once`, without waiting for its result. A failure to write it is logged.

        Raises `Overloaded`. What is deposited when the process dies is lost.
        """
        self._add(item, None)
        if at_once or len(self._queue) >= GROUP_MAX:
            self._hurry.set()

    @property
    def waiting(self) -> int:
        """The number of items that wait to be written."""
        return len(self._queue)

    @property
    def is_idle(self) -> bool:
        """True if nothing waits to be written."""
        return not self._queue and not self._is_writing

    def _add(self, item: I, task: trio.lowlevel.Task | None) -> _Entry[I]:
        if len(self._queue) >= QUEUE_MAX:
            raise Overloaded("too many payments are waiting to be written")
        entry = _Entry(item, task)
        self._queue.append(entry)
        self._wakeup.set()
        return entry

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write groups until canceled, and then what is still queued."""
        try:
            await self._connected()
            task_status.started()
            while True:
                await self._wakeup.wait()
                await self._gather()
                self._wakeup, self._hurry = trio.Event(), trio.Event()
                await self._write_next()
                if self._queue:
                    self._wakeup.set()
                    self._hurry.set()
        finally:
            ends_at = trio.current_time() + GROUP_SECONDS
            with trio.CancelScope(shield=True):  # every group has a deadline of its own
                while self._queue and trio.current_time() < ends_at:
                    await self._write_next()
            self._disconnect()

    async def _gather(self) -> None:
        """Wait for more items where that costs nobody: if none is waited for, or if there are many."""
        if self._gather_seconds:
            with trio.move_on_after(self._gather_seconds):
                await self._hurry.wait()
        elif self._last_items >= BUSY_ITEMS and (seconds := self._pause_seconds()):
            await trio.sleep(seconds)

    async def _write_next(self) -> None:
        """Write what has gathered, up to a full group."""
        group = self._take()
        self._last_items = len(group)
        if not group:
            return
        self._is_writing = True
        try:
            with trio.CancelScope(shield=True):
                await self._write_group([entry.item for entry in group], group)
        finally:
            self._is_writing = False
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _take(self) -> list[_Entry[I]]:
        group: dict[Hashable, _Entry[I]] = {}
        waiting: list[_Entry[I]] = []
        while self._queue and len(group) < GROUP_MAX:
            entry = self._queue.popleft()
            if entry.is_abandoned:
                continue
            if group.setdefault(self._statement.conflict_key(entry.item), entry) is not entry:
                waiting.append(entry)
        self._queue.extendleft(reversed(waiting))
        return list(group.values())

    async def _write_group(self, items: list[I], entries: list[_Entry[I]]) -> None:
        self.groups += 1
        self.items += len(items)
        began = trio.current_time()
        try:
            with trio.fail_after(GROUP_SECONDS):
                results = await self._write_surely(items)
        except Exception as error:  # noqa: BLE001 - any failure of a group is raised in its callers
            if _is_lost(error):
                self._disconnect()
                said = f"the database did not answer: {str(error).strip()}"
                self._wake(entries, [outcome.Error(DatabaseUnavailable(said)) for _ in items])
                return
            if len(items) == 1:
                self._wake(entries, [outcome.Error(_refusal(error) if isinstance(error, psycopg.Error) else error)])
                return
            half = len(items) // 2
            await self._write_group(items[:half], entries[:half])
            await self._write_group(items[half:], entries[half:])
        else:
            if self._observe is not None:
                self._observe(len(items), trio.current_time() - began)
            self._wake(entries, [outcome.Value(result) for result in results])

    async def _write_surely(self, items: list[I]) -> list[Result]:
        """Write a group through conflicts and lost connections, recognizing items that an earlier try has written."""
        conflicts = 0
        delays = iter(RECONNECT_DELAYS_SECONDS)
        doubtful = False
        while True:
            try:
                connection = await self._connected()
                if doubtful:
                    return await self._write_the_rest(connection, items)
                return await self._statement.write(connection, items)
            except _CONFLICTS:
                conflicts += 1
                if conflicts > CONFLICT_RETRIES_MAX:
                    raise
            except (psycopg.Error, DatabaseUnavailable) as error:
                if not _is_lost(error):
                    raise
                self._disconnect()
                doubtful = True
                delay = next(delays, None)
                if delay is None:
                    raise
                await trio.sleep(delay)

    async def _write_the_rest(self, connection: Connection, items: list[I]) -> list[Result]:
        known = await self._statement.recognize(connection, items)
        missing = [item for item, result in zip(items, known, strict=True) if result is None]
        fresh = iter(await self._statement.write(connection, missing) if missing else [])
        return [next(fresh) if result is None else result for result in known]

    def _wake(self, entries: list[_Entry[I]], outcomes: Sequence[outcome.Outcome[Result]]) -> None:
        for entry, result in zip(entries, outcomes, strict=True):
            if entry.task is not None:
                trio.lowlevel.reschedule(entry.task, result)
            elif isinstance(result, outcome.Error) and not entry.is_abandoned:
                _log.warning("what nobody waited for could not be written", error=str(result.error))

    async def _connected(self) -> Connection:
        """The writer's connection.

        PostgreSQL takes longer to plan a group than to write a small one, and a plan cannot depend on the number of rows in the
        document, which the planner does not see. So plans are kept until the tables have grown, because a plan made while a table
        was empty would scan it forever: until this writer has written `REPLAN_GROWTH` times as much as when it was made, or for
        `REPLAN_SECONDS`, since others write too. The costs make the planner look rows up by key as soon as a table has more rows
        than a group; by default it would rather read thousands of rows, all of them for a group of one.
        """
        now = trio.current_time()
        if self._connection is not None:
            if self.items > REPLAN_GROWTH * self._planned_items or now - self._planned_at > REPLAN_SECONDS:
                await self._connection.execute("DISCARD PLANS")
                self._planned_at, self._planned_items = now, self.items
            return self._connection
        connection = self._connection = await Connection.open(
            self._conninfo,
            application_name="florin committer",
            role=self._role,
            writes=True,
            plan_cache_mode="force_generic_plan",
            jit="off",
            enable_seqscan="off",
            random_page_cost="0.01",
            cpu_tuple_cost="1",
        )
        self._planned_at, self._planned_items = now, self.items
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.discard()
            self._connection = None


def _is_lost(error: Exception) -> bool:
    """Return whether the connection, or the server behind it, has failed."""
    if isinstance(error, psycopg.OperationalError):
        return error.sqlstate is None or error.sqlstate[:2] in _CONNECTION_CLASSES
    # A session that is read-only stays so even after the database can be written again.
    return isinstance(
        error, psycopg.InterfaceError | psycopg.errors.ReadOnlySqlTransaction | DatabaseUnavailable | trio.TooSlowError
    )


def _refusal(error: psycopg.Error) -> DatabaseRefused:
    """The database's error without the row, which may contain what must not be logged."""
    constraint = error.diag.constraint_name
    return DatabaseRefused(f"{type(error).__name__} {error.sqlstate} {constraint or ''}".strip(), constraint=constraint)
