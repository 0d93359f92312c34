"""Runs the checks of the promises: SQL that selects the rows that break them. Read-only; used by `florin doctor` and by every
test.

All checks see one snapshot, so they can run while payments are taken.
"""

from dataclasses import dataclass
from typing import Any

import trio

from server.db.connection import Connection
from server.db.doctor.batches import BATCH_CHECKS
from server.db.doctor.check import Check
from server.db.doctor.money import MONEY_CHECKS
from server.db.doctor.records import RECORD_CHECKS

ROWS_MAX = 20
ROLLBACK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Violation:
    """The offending rows of a check, at most `ROWS_MAX` of them."""

    check: Check
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


CHECKS = (*MONEY_CHECKS, *RECORD_CHECKS, *BATCH_CHECKS)


async def broken_promises(connection: Connection) -> list[Violation]:
    """Run all checks on one snapshot, read-only."""
    found = []
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        for check in CHECKS:
            cursor = await connection.execute(f"SELECT * FROM ({check.sql}) AS offending LIMIT {ROWS_MAX}")  # noqa: S608 - ours
            rows = await cursor.fetchall()
            if rows:
                columns = tuple(column.name for column in cursor.description or ())
                found.append(Violation(check, columns, tuple(rows)))
    finally:
        if not connection.closed:
            with trio.move_on_after(ROLLBACK_SECONDS, shield=True):
                await connection.execute("ROLLBACK")
    return found
