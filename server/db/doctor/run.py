"""Runs the checks of the promises: SQL that selects the rows that break them. Read-only; used by `florin doctor` and by every
test.

All checks see one snapshot, so they can run while payments are taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

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


_OF_PAYMENTS = ("payment_logs", "psp_operations", "refunds", "ledger_entries", "findings", "events")
"""The tables of which a windowed check sees the rows of recent payments only."""

_ROWS = "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class WHERE relname = ANY ($1::text[])"
_LARGE_TABLES = ["payment_requests", "payment_logs", "ledger_entries", "events", "deliveries", "idempotency_keys"]
ROWS_PER_SECOND = 60_000
"""About so many rows of the large tables does a whole run read, all checks together, on one core."""


async def estimated_seconds(connection: Connection) -> float:
    """The time that a whole run takes, roughly, by PostgreSQL's own estimate of its tables."""
    return float((await connection.query(_ROWS, _LARGE_TABLES))[0][0]) / ROWS_PER_SECOND


def checks_of(since: datetime | None) -> Sequence[Check]:
    """All checks, or those that can be made for recent payments alone."""
    return CHECKS if since is None else [check for check in CHECKS if check.of_payments]


def _window(since: datetime) -> str:
    """The tables as a check sees them that looks at payments made since then: their ids are UUIDv7, which sort by time."""
    first = UUID(int=max(int(since.timestamp() * 1_000), 0) << 80)
    tables = [
        f"""
        {table} AS (SELECT t.* FROM public.{table} t JOIN payment_requests p
                        ON p.merchant_id = t.merchant_id AND p.id = t.payment_id)
        """  # noqa: S608 - own names
        for table in _OF_PAYMENTS
    ]
    return f"""
    WITH payment_requests AS MATERIALIZED (
        SELECT p.* FROM public.merchants m
         CROSS JOIN LATERAL (SELECT * FROM public.payment_requests p
                              WHERE p.merchant_id = m.merchant_id AND p.id >= '{first}') p
    ), {", ".join(tables)}
    """  # noqa: S608 - own names, and a UUID


async def broken_promises(
    connection: Connection, observe: Observe | None = None, *, since: datetime | None = None
) -> list[Violation]:
    """Run all checks on one snapshot, read-only; with `since`, those of payments, for the ones made since then."""
    found = []
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        await connection.execute(f"SET LOCAL work_mem = '{WORK_MEMORY}'")
        await connection.execute("SET LOCAL jit = off")
        for check in checks_of(since):
            if observe is not None:
                observe(check)
            violation = await _violation(connection, check, _window(since) if since is not None else "")
            if violation is not None:
                found.append(violation)
    finally:
        if not connection.closed:
            with trio.move_on_after(ROLLBACK_SECONDS, shield=True):
                await connection.execute("ROLLBACK")
    return found


async def _violation(connection: Connection, check: Check, window: str) -> Violation | None:
    if check.offends is None:
        cursor = await connection.execute(f"{window} SELECT * FROM ({check.sql}) AS offending LIMIT {ROWS_MAX}")  # noqa: S608 - ours
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
