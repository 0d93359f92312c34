"""psycopg 3 driven natively by trio.

psycopg writes all of its I/O as generators that yield the event they wait for; this subclass of `AsyncConnection` drives them
with trio's readiness calls, so queries, transactions, COPY and LISTEN work on trio without a thread or an asyncio loop.
Invariants:

- A connection is used by one task at a time; a second one gets `InterfaceError`, not a queue.
- When a task is canceled in the middle of a query, the query is canceled on the server within a time limit; a connection that
  is still busy after that is closed. A connection that is not closed is therefore usable.
- Every session has the settings that Florin depends on (`SESSION_SETTINGS`), whatever the server, the database or the login user
  has for a default; and one that is to write can write.

`_connect_gen`, `_cancel_gen` and the signature of `wait` are private to psycopg, so its minor version is pinned.
"""

import select
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
import psycopg.waiting
import trio
from psycopg import conninfo as libpq_conninfo
from psycopg import pq
from psycopg.abc import PQGen, PQGenConn
from psycopg.rows import TupleRow

from core.errors import DatabaseRefused, DatabaseUnavailable
from server.db.conninfo import attempts, parse

RV = TypeVar("RV")

CANCEL_SECONDS = 2.0
CONNECT_SECONDS = 10.0
CONNECT_SECONDS_MIN = 2.0
"""The shortest time that one of several addresses gets."""

COMMIT_SECONDS = 10.0

SESSION_SETTINGS = {
    "statement_timeout": "0",  # first: from the next statement on it is in force, and so the others have time
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "search_path": "public",
    "standard_conforming_strings": "on",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
"""The settings that decide the meaning of statements and the form of their results. Time limits are Florin's own."""

_COMMITS_TO_DISK = """
SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply'
                                             ELSE 'on' END, false)
"""
"""A commit is acknowledged once it is on disk, here and at the synchronous standbys, if there are any."""

_TOO_SLOW = f"PostgreSQL did not answer within {CONNECT_SECONDS:.0f} s"
_ROLE_ADVICE = "run `florin migrate`, and make the login user a member of that role"
_READ = psycopg.waiting.Wait.R
_WRITE = psycopg.waiting.Wait.W
_POLL_READ = select.POLLIN | select.POLLERR | select.POLLHUP


class ReadOnly(DatabaseUnavailable):
    """The database answers and cannot be written."""


class _OneUser:
    """Replaces psycopg's asyncio lock. Contention is a bug in our code, so it raises instead of waiting."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = False

    async def __aenter__(self) -> None:
        if self._held:
            raise psycopg.InterfaceError("two tasks use one connection at the same time")
        self._held = True

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held = False


class Connection(psycopg.AsyncConnection[TupleRow]):
    """One PostgreSQL session on trio. Statements use PostgreSQL's own `$1` placeholders."""

    def __init__(self, pgconn: Any, row_factory: Any = psycopg.rows.tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.lock = _OneUser()  # type: ignore[assignment]
        self.cursor_factory = psycopg.AsyncRawCursor

    @classmethod
    async def open(
        cls, address: str, *, application_name: str = "florin", role: str | None = None, writes: bool = False, **options: str
    ) -> Self:
        """Connect, in autocommit mode, to the first address that answers and, if the session `writes`, can be written.

        `role` is the role of the session (`server.db.roles`), by default the login user; `options` are server settings of the
        session, e.g. `plan_cache_mode="force_custom_plan"`. Raises `DatabaseUnavailable` if no server answers within
        `CONNECT_SECONDS`, or all refuse the connection or are read-only, `DatabaseRefused` if one refuses the role.
        """
        params = parse(address)
        settings = {**SESSION_SETTINGS, **options}
        if "search_path" in str(params.get("options") or ""):
            del settings["search_path"]  # whoever wrote the address has chosen a schema
        failures: dict[str, Exception] = {}
        with trio.move_on_after(CONNECT_SECONDS):
            left = [*await attempts({**params, "application_name": application_name, "client_encoding": "UTF8"})]
            seconds = max(CONNECT_SECONDS / len(left), CONNECT_SECONDS_MIN)
            for one in left:
                try:
                    with trio.fail_after(seconds):
                        return await cls._open_one(one, role, settings, writes=writes)
                except psycopg.Error as error:
                    said = str(error).strip()
                    if role is not None and f'"{role}"' in said:
                        raise DatabaseRefused(f"cannot use the role {role}: {said}; {_ROLE_ADVICE}") from error
                    failures[f"cannot connect to PostgreSQL: {said}"] = error
                except DatabaseUnavailable as error:
                    failures[str(error)] = error
                except trio.TooSlowError as error:
                    failures[_TOO_SLOW] = error
        kind = ReadOnly if any(isinstance(error, ReadOnly) for error in failures.values()) else DatabaseUnavailable
        raise kind("; ".join(failures or [_TOO_SLOW])) from next(iter(failures.values()), None)

    @classmethod
    async def _open_one(cls, params: dict[str, Any], role: str | None, settings: Mapping[str, str], *, writes: bool) -> Self:
        connection = await _drive_connecting(cls._connect_gen(libpq_conninfo.make_conninfo("", **params)))
        connection._autocommit = True
        try:
            await connection._set_up(role, settings, writes=writes)
        except BaseException:
            connection.discard()
            raise
        return connection

    async def _set_up(self, role: str | None, settings: Mapping[str, str], *, writes: bool) -> None:
        """Set the session's role and settings, and check that it has them, in one round trip.

        They are statements and not options of the connection, which a pooler in between may drop without a word.
        """
        wanted = {**settings, **({"role": role} if role is not None else {})}
        statements = [f"SET {name} = '{value}'" for name, value in wanted.items()]
        checks = ["current_user", *(f"current_setting('{name}')" for name in ("transaction_read_only", *settings))]
        if "synchronous_commit" not in settings:
            statements.append(_COMMITS_TO_DISK)
        cursor = await self.execute("; ".join([*statements, f"SELECT {', '.join(checks)}"]))
        while cursor.nextset():
            pass
        (row,) = await cursor.fetchall()
        found = dict(zip(["role", "read_only", *settings], row, strict=True))
        wrong = [name for name, value in wanted.items() if not _is_same(found[name], value)]
        if wrong:
            raise DatabaseRefused(f"the session did not get {', '.join(f'{one} = {wanted[one]}' for one in wrong)}")
        if writes and found["read_only"] == "on":
            raise ReadOnly("the database is read-only: a standby, or set so by an administrator")

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 0,
        timeout: float | None = None,  # noqa: ASYNC109 - psycopg's signature
    ) -> RV:
        """Run one of psycopg's generators. Cancellation cancels the query on the server."""
        assert timeout is None, "callers own timeouts, by cancel scopes"
        del interval
        finished = False
        try:
            result = await self._drive(gen)
            finished = True
            return result
        finally:
            if not finished and self._is_busy():
                with trio.move_on_after(CANCEL_SECONDS, shield=True):
                    await self._cancel_query(gen)
                if self._is_busy():
                    self.discard()

    async def _drive(self, gen: PQGen[RV]) -> RV:
        try:
            wanted = next(gen)
            while True:
                wanted = gen.send(await _ready(self.pgconn.socket, wanted))
        except StopIteration as stop:
            result: RV = stop.value
            return result

    async def _cancel_query(self, gen: PQGen[Any]) -> None:
        """Ask the server to stop the query, and read its answer to the end."""
        with suppress(StopIteration, psycopg.Error):
            await _drive_connecting(self._cancel_gen())
            while True:
                gen.send(await _ready(self.pgconn.socket, _READ))

    def _is_busy(self) -> bool:
        return self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE

    def discard(self) -> None:
        """Close at once. The server rolls back an open transaction."""
        self.pgconn.finish()

    def is_usable(self) -> bool:
        """Return whether an idle connection can be used: open, outside a transaction, and without unexpected input.

        A server that went away leaves a message or an end of file to read; this polls for it without waiting.
        """
        if self.closed or self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            return False
        poller = select.poll()
        poller.register(self.pgconn.socket, _POLL_READ)
        return not poller.poll(0)

    async def query(self, sql: str, *params: Any) -> list[TupleRow]:
        """Run a statement and return its rows. The server prepares it at first use."""
        cursor = await self.execute(sql, params or None, prepare=True)
        result = cursor.pgresult  # `description` would make an object for each column
        return await cursor.fetchall() if result is not None and result.status == pq.ExecStatus.TUPLES_OK else []

    async def run(self, sql: str, *params: Any) -> int:
        """Run a statement and return the number of rows it affected."""
        cursor = await self.execute(sql, params or None, prepare=True)
        return cursor.rowcount

    @asynccontextmanager
    async def atomic(self) -> AsyncIterator[None]:
        """A transaction: committed at the end of the block, rolled back if an exception or cancellation leaves it."""
        await self.execute("BEGIN")
        try:
            yield
        except BaseException:
            with trio.move_on_after(CANCEL_SECONDS, shield=True):
                if not self.closed:
                    await self.execute("ROLLBACK")
            if self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                self.discard()
            raise
        with trio.move_on_after(COMMIT_SECONDS, shield=True):
            await self.execute("COMMIT")
            return
        self.discard()
        raise DatabaseUnavailable("the answer to COMMIT was lost")


def _is_same(found: str, wanted: str) -> bool:
    """Return whether a setting has a value, which the server may write in another way, as `10s` for `10`."""
    return found == wanted or {found, wanted} in ({"on", "1"}, {"off", "0"}) or (found, wanted) == (f"{wanted}s", wanted)


@asynccontextmanager
async def open_session(
    url: str, *, application_name: str = "florin command", role: str | None = None
) -> AsyncIterator[Connection]:
    """A connection for a block, discarded at its end. Raises `DatabaseRefused` for an error of the database."""
    connection = await Connection.open(url, application_name=application_name, role=role)
    try:
        yield connection
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseRefused("this database has no Florin tables: run `florin migrate`") from error
    except psycopg.Error as error:
        raise DatabaseRefused(f"the database refused: {str(error).strip()}") from error
    finally:
        connection.discard()


async def _drive_connecting(gen: PQGenConn[RV]) -> RV:
    try:
        descriptor, wanted = next(gen)
        while True:
            descriptor, wanted = gen.send(await _ready(descriptor, wanted))
    except StopIteration as stop:
        result: RV = stop.value
        return result


async def _ready(descriptor: int, wanted: psycopg.waiting.Wait) -> psycopg.waiting.Ready:
    if wanted == _READ:
        await trio.lowlevel.wait_readable(descriptor)
        return psycopg.waiting.Ready.R
    if wanted == _WRITE:
        await trio.lowlevel.wait_writable(descriptor)
        return psycopg.waiting.Ready.W
    return await _either(descriptor)


async def _either(descriptor: int) -> psycopg.waiting.Ready:
    """Wait until a descriptor is readable or writable. Rare: only for a query larger than the socket's buffer."""
    ready = psycopg.waiting.Ready.NONE

    async def watch(wait: Any, flag: psycopg.waiting.Ready) -> None:
        nonlocal ready
        await wait(descriptor)
        ready = psycopg.waiting.Ready(ready | flag)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, trio.lowlevel.wait_readable, psycopg.waiting.Ready.R)
        nursery.start_soon(watch, trio.lowlevel.wait_writable, psycopg.waiting.Ready.W)
    return ready
