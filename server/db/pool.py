"""A bounded pool of connections.

Last in, first out, so a quiet server keeps few. Invariants: at most `size` connections are open; at most `waiters_max` tasks wait
for one, and further callers get `Overloaded`; a connection is checked before it is handed out; one that comes back busy, broken
or in a transaction is closed.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.db.connection import Connection, ReadOnly

WAITERS_MAX = 1_024
ACQUIRE_SECONDS = 5.0
USE_SECONDS = 30.0
"""The longest time for which a connection may be held: for queries only, never during a call to another service."""


class Pool:
    """Connections to one database, opened as needed. Use as `async with open_pool(...) as pool`.

    `found_read_only` is called when a session turns out to be read-only; a pool that has it opens none that is.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        size: int,
        role: str | None = None,
        waiters_max: int = WAITERS_MAX,
        found_read_only: Callable[[], None] | None = None,
    ) -> None:
        self._conninfo = conninfo
        self._role = role
        self._found_read_only = found_read_only
        self._idle: list[Connection] = []
        self._slots = trio.Semaphore(size)
        self._waiters_max = waiters_max

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection.

        Raises `Overloaded` if too many tasks wait or none came free in `ACQUIRE_SECONDS`, `DatabaseUnavailable` if the database
        cannot be reached or was lost while in use.
        """
        await self._acquire()
        try:
            connection = await self._checkout()
            try:
                with trio.fail_after(USE_SECONDS):  # noqa: ASYNC100 - the caller's block awaits
                    yield connection
            except psycopg.errors.ReadOnlySqlTransaction as error:
                connection.discard()  # it stays so even after the database can be written again
                if self._found_read_only is not None:
                    self._found_read_only()
                raise DatabaseUnavailable(f"the database is read-only: {str(error).strip()}") from error
            except psycopg.OperationalError as error:
                raise DatabaseUnavailable(f"the connection to the database was lost: {str(error).strip()}") from error
            except psycopg.Error:
                connection.discard()  # a statement that was prepared before a migration would fail forever
                raise
            except trio.TooSlowError as error:
                raise DatabaseUnavailable(f"the database did not answer within {USE_SECONDS:.0f} s") from error
            finally:
                self._put_back(connection)
        finally:
            self._slots.release()

    async def _acquire(self) -> None:
        if self._slots.value == 0 and self._slots.statistics().tasks_waiting >= self._waiters_max:
            raise Overloaded("too many requests are waiting for the database")
        with trio.move_on_after(ACQUIRE_SECONDS):
            await self._slots.acquire()
            return
        raise Overloaded("no database connection became free in time")

    async def _checkout(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.discard()
        try:
            return await Connection.open(self._conninfo, role=self._role, writes=self._found_read_only is not None)
        except ReadOnly:
            assert self._found_read_only is not None
            self._found_read_only()
            raise

    def _put_back(self, connection: Connection) -> None:
        if connection.is_usable():
            self._idle.append(connection)
        else:
            connection.discard()

    def close(self) -> None:
        """Close the idle connections. Those in use are closed by their users."""
        while self._idle:
            self._idle.pop().discard()


@asynccontextmanager
async def open_pool(
    conninfo: str,
    *,
    size: int,
    role: str | None = None,
    waiters_max: int = WAITERS_MAX,
    found_read_only: Callable[[], None] | None = None,
) -> AsyncIterator[Pool]:
    """A pool that is closed at the end of the block. Its sessions work as `role`."""
    pool = Pool(conninfo, size=size, role=role, waiters_max=waiters_max, found_read_only=found_read_only)
    try:
        yield pool
    finally:
        pool.close()
