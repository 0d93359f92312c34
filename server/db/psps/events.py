"""PSP events that changed nothing: repeated, out of date, irrelevant, or about an unknown payment.

An event that changed a payment is written with the change, by `server.db.payments.changes`.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec

from core.ids import MerchantId, PaymentId, PspAccountId
from server.db import json_records
from server.db.connection import Connection


class EventOutcome(StrEnum):
    """The result of an event. TOO_EARLY and DEAD events are in the inbox, `server.db.psps.inbox`."""

    APPLIED = "applied"
    NOTHING_NEW = "nothing_new"
    IGNORED = "ignored"
    TOO_EARLY = "too_early"
    DEAD = "dead"


async def was_seen(
    connection: Connection, merchant_id: MerchantId, payment_id: PaymentId, account_id: PspAccountId, *, event_id: str
) -> bool:
    """Return whether the event was processed before."""
    rows = await connection.query(
        """
        SELECT 1 FROM psp_events
         WHERE merchant_id = $1 AND payment_id = $2 AND psp_account_id = $3 AND event_id = $4
        """,
        merchant_id,
        payment_id,
        account_id,
        event_id,
    )
    return bool(rows)


class EventRecord(msgspec.Struct, frozen=True):
    """A PSP event, by its key."""

    merchant_id: UUID
    payment_id: UUID
    event_id: str


async def known_events(
    connection: Connection, account_id: PspAccountId, events: Sequence[tuple[MerchantId, PaymentId, str]]
) -> set[str]:
    """The ids of those events that were processed before."""
    rows = await connection.query(
        f"""
        SELECT e.event_id
          FROM json_to_recordset($2::json) AS i ({json_records.columns(EventRecord)})
          JOIN psp_events e ON e.merchant_id = i.merchant_id AND e.payment_id = i.payment_id AND e.psp_account_id = $1
                           AND e.event_id = i.event_id
        """,  # noqa: S608 - own columns
        account_id,
        json_records.encode([EventRecord(*one) for one in events]),
    )
    return {row[0] for row in rows}


async def record(
    connection: Connection,
    merchant_id: MerchantId,
    payment_id: PaymentId,
    account_id: PspAccountId,
    *,
    event_id: str,
    event_type: str,
    outcome: EventOutcome,
    now: datetime,
) -> None:
    """Record the event. A second time changes nothing."""
    await connection.run(
        """
        INSERT INTO psp_events (merchant_id, psp_account_id, event_id, payment_id, type, outcome, received_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (merchant_id, payment_id, psp_account_id, event_id) DO NOTHING
        """,
        merchant_id,
        account_id,
        event_id,
        payment_id,
        event_type,
        outcome.value,
        now,
    )
