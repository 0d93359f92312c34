"""Runs the checks of the promises: SQL that selects the rows that break them. Read-only; used by `florin doctor` and by every
test.

All checks see one snapshot, so they can run while payments are taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import trio
from psycopg.rows import TupleRow

from server.db.connection import Connection
from server.db.doctor.batches import BATCH_CHECKS
from server.db.doctor.check import Check
from server.db.doctor.money import MONEY_CHECKS
from server.db.doctor.records import RECORD_CHECKS

ROWS_MAX = 20
PIECE = 5_000
WORK_MEMORY = "64MB"
ROLLBACK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Violation:
    """The offending rows of a check, at most `ROWS_MAX` of them."""

    check: Check
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


CHECKS = (*MONEY_CHECKS, *RECORD_CHECKS, *BATCH_CHECKS)


Observe = Callable[[Check], None]
"""Called before each check."""


async def broken_promises(connection: Connection, observe: Observe | None = None) -> list[Violation]:
    """Run all checks on one snapshot, read-only."""
    found = []
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        await connection.execute(f"SET LOCAL work_mem = '{WORK_MEMORY}'")
        await connection.execute("SET LOCAL jit = off")
        for check in CHECKS:
            if observe is not None:
                observe(check)
            violation = await _violation(connection, check)
            if violation is not None:
                found.append(violation)
    finally:
        if not connection.closed:
            with trio.move_on_after(ROLLBACK_SECONDS, shield=True):
                await connection.execute("ROLLBACK")
    return found


async def _violation(connection: Connection, check: Check) -> Violation | None:
    if check.offends is None:
        cursor = await connection.execute(f"SELECT * FROM ({check.sql}) AS offending LIMIT {ROWS_MAX}")  # noqa: S608 - ours
        rows = await cursor.fetchall()
    else:
        cursor, rows = await _picked(connection, check.sql, check.offends)
    if not rows:
        return None
    columns = tuple(column.name for column in cursor.description or ())
    shown = check.shown or columns
    picked = tuple(tuple(row[columns.index(name)] for name in shown) for row in rows)
    return Violation(check, shown, picked)


async def _picked(
    connection: Connection, sql: str, offends: Callable[[tuple[Any, ...]], bool]
) -> tuple[psycopg.AsyncCursor[TupleRow], list[TupleRow]]:
    """The first rows that offend, from a cursor, because the rows to look at may be as many as there are payments."""
    await connection.execute(f"DECLARE looked_at NO SCROLL CURSOR FOR {sql}")
    rows: list[TupleRow] = []
    try:
        while True:
            cursor = await connection.execute(f"FETCH {PIECE} FROM looked_at")
            piece = await cursor.fetchall()
            rows += [row for row in piece if offends(row)]
            if len(piece) < PIECE or len(rows) >= ROWS_MAX:
                return cursor, rows[:ROWS_MAX]
    finally:
        if not connection.closed and connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            with trio.move_on_after(ROLLBACK_SECONDS, shield=True):
                await connection.execute("CLOSE looked_at")
