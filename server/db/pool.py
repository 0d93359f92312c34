"""A bounded pool of connections.

Last in, first out, so that a quiet server needs few. Invariants: at most `size` connections are open and at most
`waiters_max` tasks wait for one, past which callers are told to come back; what is handed out was checked to be alive; what
comes back busy, broken or in a transaction is closed, not reused.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.db.connection import Connection

WAITERS_MAX = 1_024
ACQUIRE_SECONDS = 5.0
USE_SECONDS = 30.0
"""How long a connection may be held: queries only, never a call to anyone else."""


class Pool:
    """Connections to one database, opened as needed. Use as `async with open_pool(...) as pool`."""

    def __init__(self, conninfo: str, *, size: int, role: str | None = None, waiters_max: int = WAITERS_MAX) -> None:
        self._conninfo = conninfo
        self._role = role
        self._idle: list[Connection] = []
        self._slots = trio.Semaphore(size)
        self._waiters_max = waiters_max

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection.

        Raises `Overloaded` where too many wait or none came free in `ACQUIRE_SECONDS`, `DatabaseUnavailable` where the
        database cannot be reached or was lost while in use.
        """
        await self._acquire()
        try:
            connection = await self._checkout()
            try:
                with trio.fail_after(USE_SECONDS):  # noqa: ASYNC100 - the caller's block waits
                    yield connection
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
                raise DatabaseUnavailable(f"the database went away: {str(error).strip()}") from error
            except psycopg.Error:
                connection.discard()  # a statement that was prepared before a migration fails for ever
                raise
            except trio.TooSlowError as error:
                raise DatabaseUnavailable(f"the database did not answer within {USE_SECONDS:.0f} s") from error
            finally:
                self._put_back(connection)
        finally:
            self._slots.release()

    async def _acquire(self) -> None:
        if self._slots.value == 0 and self._slots.statistics().tasks_waiting >= self._waiters_max:
            raise Overloaded("too many requests wait for the database")
        with trio.move_on_after(ACQUIRE_SECONDS):
            await self._slots.acquire()
            return
        raise Overloaded("no database connection came free in time")

    async def _checkout(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.discard()
        return await Connection.open(self._conninfo, role=self._role)

    def _put_back(self, connection: Connection) -> None:
        if connection.is_usable():
            self._idle.append(connection)
        else:
            connection.discard()

    def close(self) -> None:
        """Close the idle connections. Those in use are closed by whoever uses them."""
        while self._idle:
            self._idle.pop().discard()


@asynccontextmanager
async def open_pool(conninfo: str, *, size: int, role: str | None = None, waiters_max: int = WAITERS_MAX) -> AsyncIterator[Pool]:
    """A pool that is closed at the end of the block; its sessions work as `role`."""
    pool = Pool(conninfo, size=size, role=role, waiters_max=waiters_max)
    try:
        yield pool
    finally:
        pool.close()
