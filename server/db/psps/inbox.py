"""PSP events that could not be applied, because they came too early or failed. They are retried and end as dead letters.

What is kept is Florin's reading of the event, never the PSP's own text, so no customer data and no card number gets here. An
event that names no merchant of ours is kept under the nil UUID.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from core.ids import MerchantId, PspAccountId
from server.db.connection import Connection

NOBODY = MerchantId(UUID(int=0))
ALIKE_MAX = 5
"""Failures of an event with the same error after which it is a dead letter."""


class InboxState(StrEnum):
    """WAITING is retried; DEAD needs an operator; DROPPED was discarded by one."""

    WAITING = "WAITING"
    DONE = "DONE"
    DEAD = "DEAD"
    DROPPED = "DROPPED"


class InboxItem(msgspec.Struct, frozen=True, kw_only=True):
    """An event that waits or has ended. `notice` is JSON, or None if the event could not be read."""

    merchant_id: MerchantId
    psp_account_id: PspAccountId
    event_id: str
    type: str
    notice: str | None
    state: InboxState
    attempts: int
    last_error: str
    received_at: datetime


_FIELDS = InboxItem.__struct_fields__
_COLUMNS = ", ".join(f"b.{name}" for name in _FIELDS)


def _item(row: tuple[Any, ...]) -> InboxItem:
    values = dict(zip(_FIELDS, row, strict=True))
    return InboxItem(**{**values, "state": InboxState(values["state"])})


def _told(item: InboxItem) -> tuple[Any, ...]:
    """The first six parameters of the statement: what a row says about the event itself."""
    return item.merchant_id, item.psp_account_id, item.event_id, item.type, item.notice, item.last_error


async def park(connection: Connection, item: InboxItem, *, due_at: datetime) -> None:
    """Keep an event that came too early. An existing one is not changed."""
    await connection.run(
        """
        INSERT INTO psp_inbox (
            merchant_id, psp_account_id, event_id, type, notice, state, attempts, last_error, due_at, received_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, 'WAITING', 0, $6, $7, $8, $8)
        ON CONFLICT (merchant_id, psp_account_id, event_id) DO NOTHING
        """,
        *_told(item),
        due_at,
        item.received_at,
    )


async def note_failure(connection: Connection, item: InboxItem, *, due_at: datetime, now: datetime) -> tuple[InboxState, bool]:
    """Count a failure with `item.last_error`; the fifth with the same error makes it a dead letter. Returns its state, and
    whether that is new.

    An event that has ended is not changed.
    """
    rows = await connection.query(
        """
        INSERT INTO psp_inbox AS b (
            merchant_id, psp_account_id, event_id, type, notice, state, attempts, last_error, due_at, received_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, 'WAITING', 1, $6, $7, $8, $8)
        ON CONFLICT (merchant_id, psp_account_id, event_id) DO UPDATE
           SET attempts = CASE WHEN b.last_error = excluded.last_error THEN b.attempts + 1 ELSE 1 END,
               state = CASE WHEN b.last_error = excluded.last_error AND b.attempts + 1 >= $9 THEN 'DEAD' ELSE 'WAITING' END,
               due_at = CASE WHEN b.last_error = excluded.last_error AND b.attempts + 1 >= $9 THEN NULL ELSE excluded.due_at END,
               last_error = excluded.last_error, updated_at = excluded.updated_at
         WHERE b.state = 'WAITING'
        RETURNING b.state
        """,
        *_told(item),
        due_at,
        now,
        ALIKE_MAX,
    )
    if rows:
        return InboxState(rows[0][0]), rows[0][0] == InboxState.DEAD
    known = await connection.query(
        "SELECT state FROM psp_inbox WHERE merchant_id = $1 AND psp_account_id = $2 AND event_id = $3",
        item.merchant_id,
        item.psp_account_id,
        item.event_id,
    )
    return InboxState(known[0][0]), False


async def merchants_with_due_events(connection: Connection, *, limit: int) -> list[MerchantId]:
    """Merchants with parked events to retry now."""
    rows = await connection.query(
        "SELECT merchant_id FROM psp_inbox WHERE due_at <= now() GROUP BY merchant_id ORDER BY min(due_at) LIMIT $1", limit
    )
    return [MerchantId(row[0]) for row in rows]


async def claim_due_events(
    connection: Connection, merchant_id: MerchantId, *, limit: int, lease_seconds: float
) -> list[InboxItem]:
    """Claim due events of one merchant for `lease_seconds`. No other worker gets them until then. The claim counts as an
    attempt.
    """
    rows = await connection.query(
        f"""
        WITH due AS (
            SELECT psp_account_id, event_id FROM psp_inbox WHERE merchant_id = $1 AND due_at <= now()
             ORDER BY due_at, psp_account_id, event_id LIMIT $2 FOR UPDATE
        )
        UPDATE psp_inbox b SET due_at = now() + make_interval(secs => $3::float8), attempts = b.attempts + 1
          FROM due
         WHERE b.merchant_id = $1 AND b.psp_account_id = due.psp_account_id AND b.event_id = due.event_id AND b.due_at <= now()
        RETURNING {_COLUMNS}
        """,  # noqa: S608 - own columns
        merchant_id,
        limit,
        lease_seconds,
    )
    return [_item(row) for row in rows]


async def give_back(connection: Connection, item: InboxItem, *, due_at: datetime) -> None:
    """Undo a claim whose attempt was not made."""
    await connection.run(
        """
        UPDATE psp_inbox SET attempts = attempts - 1, due_at = $5
         WHERE merchant_id = $1 AND psp_account_id = $2 AND event_id = $3 AND state = 'WAITING' AND attempts = $4
        """,
        item.merchant_id,
        item.psp_account_id,
        item.event_id,
        item.attempts,
        due_at,
    )


async def prune_events(connection: Connection, *, ended_before: datetime, limit: int) -> int:
    """Delete events that were applied or dropped long ago. Returns the number deleted."""
    return await connection.run(
        """
        DELETE FROM psp_inbox
         WHERE (merchant_id, psp_account_id, event_id) IN (
               SELECT merchant_id, psp_account_id, event_id FROM psp_inbox
                WHERE state IN ('DONE', 'DROPPED') AND updated_at < $1 LIMIT $2)
        """,
        ended_before,
        limit,
    )


async def end_event(connection: Connection, item: InboxItem, state: InboxState, *, due_at: datetime | None, error: str) -> bool:
    """Record the result of a claimed event. Returns False if another worker was faster."""
    touched = await connection.run(
        """
        UPDATE psp_inbox SET state = $4, due_at = $5, last_error = $6, updated_at = now()
         WHERE merchant_id = $1 AND psp_account_id = $2 AND event_id = $3 AND state = 'WAITING' AND attempts = $7
        """,
        item.merchant_id,
        item.psp_account_id,
        item.event_id,
        state.value,
        due_at,
        error,
        item.attempts,
    )
    return touched == 1


async def move_event(connection: Connection, event_id: str, *, from_states: list[InboxState], to: InboxState) -> list[InboxItem]:
    """Retry an event (WAITING) or discard it (DROPPED), for an operator. Returns the events that were changed."""
    rows = await connection.query(
        f"""
        UPDATE psp_inbox b
           SET state = $3, attempts = 0, due_at = CASE WHEN $3 = 'WAITING' THEN now() END, updated_at = now()
         WHERE b.event_id = $1 AND b.state = ANY ($2::text[])
        RETURNING {_COLUMNS}
        """,  # noqa: S608 - own columns
        event_id,
        [state.value for state in from_states],
        to.value,
    )
    return [_item(row) for row in rows]


async def list_events(connection: Connection, state: InboxState, *, limit: int) -> list[InboxItem]:
    """Events in a state, the latest first."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM psp_inbox b WHERE b.state = $1 ORDER BY b.received_at DESC LIMIT $2",  # noqa: S608 - own columns
        state.value,
        limit,
    )
    return [_item(row) for row in rows]
