"""Results of a batch's items: written in groups under the batch's lease, read in the order in which they became known."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from core.batch import UNFINISHED, BatchId, ItemResult, ItemStatus, ItemType
from core.ids import MerchantId, PaymentId, RefundId
from core.payment import Status
from server.db import json_records
from server.db.batches.batches import ClaimedBatch
from server.db.connection import Connection


class ResultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A result as the statement reads it."""

    number: int
    type: ItemType
    status: ItemStatus
    reference: str | None
    payment_id: UUID | None
    payment_status: Status | None
    refund_id: UUID | None
    did_check_again: bool
    code: str | None
    detail: str | None


async def write_results(
    connection: Connection, claimed: ClaimedBatch, results: Sequence[ItemResult], *, after: int, now: datetime
) -> bool | None:
    """Write results at the positions behind `after`. Returns whether the batch is to be stopped, or None, writing nothing, if the
    lease is lost.

    An existing result is kept unless it is UNKNOWN. Repeating a write changes nothing.
    """
    rows = await connection.query(
        f"""
        WITH held AS (
            SELECT merchant_id, id, is_stopping FROM batches
             WHERE merchant_id = $1 AND id = $2 AND lease_token = $3 AND status = 'RUNNING' FOR NO KEY UPDATE
        ), written AS (
            INSERT INTO batch_items AS b (
                merchant_id, batch_id, number, position, type, status, reference, payment_id, payment_status, refund_id,
                did_check_again, code, detail, finished_at)
            SELECT h.merchant_id, h.id, i.number, $4 + i.ordinality, i.type, i.status, i.reference, i.payment_id,
                   i.payment_status, i.refund_id, i.did_check_again, i.code, i.detail, $5
              FROM held h
             CROSS JOIN ROWS FROM (json_to_recordset($6::json) AS ({json_records.columns(ResultRecord)}))
                   WITH ORDINALITY AS i ({", ".join(ResultRecord.__struct_fields__)}, ordinality)
            ON CONFLICT (merchant_id, batch_id, number) DO UPDATE
               SET position = excluded.position, status = excluded.status, payment_id = excluded.payment_id,
                   payment_status = excluded.payment_status, refund_id = excluded.refund_id,
                   did_check_again = excluded.did_check_again, code = excluded.code, detail = excluded.detail,
                   finished_at = excluded.finished_at
             WHERE b.status = 'UNKNOWN'
        )
        SELECT is_stopping FROM held
        """,  # noqa: S608 - own columns
        claimed.batch.merchant_id,
        claimed.batch.id,
        claimed.token,
        after,
        now,
        json_records.encode(
            [ResultRecord(**{name: getattr(one, name) for name in ResultRecord.__struct_fields__}) for one in results]
        ),
    )
    return rows[0][0] if rows else None


async def finished_numbers(connection: Connection, claimed: ClaimedBatch) -> set[int]:
    """The numbers of the items that have a result."""
    rows = await connection.query(
        "SELECT number FROM batch_items WHERE merchant_id = $1 AND batch_id = $2 AND status <> ALL ($3::text[])",
        claimed.batch.merchant_id,
        claimed.batch.id,
        [one.value for one in UNFINISHED],
    )
    return {row[0] for row in rows}


async def count_results(connection: Connection, merchant_id: MerchantId, batch_id: BatchId) -> dict[ItemStatus, int]:
    """The number of items by result, without those that were never started."""
    rows = await connection.query(
        "SELECT status, count(*) FROM batch_items WHERE merchant_id = $1 AND batch_id = $2 GROUP BY status", merchant_id, batch_id
    )
    return {ItemStatus(status): count for status, count in rows}


async def list_results(
    connection: Connection, merchant_id: MerchantId, batch_id: BatchId, *, after: int, limit: int
) -> list[tuple[int, ItemResult]]:
    """Results and their positions, in order, behind a position. A result that changed stands at its latest position."""
    rows = await connection.query(
        """
        SELECT position, number, type, status, reference, payment_id, payment_status, refund_id, did_check_again, code, detail
          FROM batch_items WHERE merchant_id = $1 AND batch_id = $2 AND position > $3 ORDER BY position LIMIT $4
        """,
        merchant_id,
        batch_id,
        after,
        limit,
    )
    return [(row[0], _result(row[1:])) for row in rows]


def _result(row: Sequence[Any]) -> ItemResult:
    number, kind, status, reference, payment_id, payment_status, refund_id, did_check_again, code, detail = row
    return ItemResult(
        number=number,
        type=ItemType(kind),
        status=ItemStatus(status),
        reference=reference,
        payment_id=PaymentId(payment_id) if payment_id else None,
        payment_status=Status(payment_status) if payment_status else None,
        refund_id=RefundId(refund_id) if refund_id else None,
        did_check_again=did_check_again,
        code=code,
        detail=detail,
    )


async def settle_open_items(connection: Connection, *, limit: int) -> int:
    """Write how the open items of batches that are over have ended since: as their payments and refunds, behind the results that
    their batches have. Returns their number.
    """
    return await connection.run(
        """
        WITH open AS (
            SELECT i.merchant_id, i.batch_id, i.number, coalesce(r.status, p.status) AS ended_as, p.status AS payment_status,
                   p.decline_code, p.did_check_again, r.failure_code
              FROM batch_items i
              JOIN batches b ON b.merchant_id = i.merchant_id AND b.id = i.batch_id AND b.status <> 'RUNNING'
              JOIN payment_requests p ON p.merchant_id = i.merchant_id AND p.id = i.payment_id
              LEFT JOIN refunds r ON r.merchant_id = i.merchant_id AND r.payment_id = i.payment_id AND r.id = i.refund_id
             WHERE i.status IN ('UNKNOWN', 'PENDING') AND i.type <> 'verify' AND (i.type = 'refund') = (r.id IS NOT NULL)
               AND coalesce(r.status, p.status) NOT IN ('PENDING', 'UNKNOWN')
               AND (i.type <> 'capture' OR p.pending_id IS NULL)
             ORDER BY i.merchant_id, i.batch_id, i.number LIMIT $1
        ), over AS (
            SELECT b.merchant_id, b.id FROM batches b
             WHERE (b.merchant_id, b.id) IN (SELECT merchant_id, batch_id FROM open) AND b.status <> 'RUNNING'
             ORDER BY b.merchant_id, b.id FOR NO KEY UPDATE SKIP LOCKED
        ), placed AS (
            SELECT o.*, (SELECT max(position) FROM batch_items l WHERE l.merchant_id = o.merchant_id AND l.batch_id = o.batch_id)
                        + row_number() OVER (PARTITION BY o.merchant_id, o.batch_id ORDER BY o.number) AS position
              FROM open o JOIN over ON over.merchant_id = o.merchant_id AND over.id = o.batch_id
        )
        UPDATE batch_items i
           SET position = o.position,
               status = CASE WHEN o.ended_as IN ('SUCCEEDED', 'AUTHORIZED') THEN CASE
                                  WHEN i.type = 'capture' AND o.payment_status <> 'SUCCEEDED' THEN 'FAILED' ELSE 'SUCCEEDED' END
                             WHEN o.ended_as = 'DECLINED' THEN 'DECLINED' ELSE 'FAILED' END,
               payment_status = o.payment_status, did_check_again = o.did_check_again,
               code = CASE WHEN o.ended_as IN ('SUCCEEDED', 'AUTHORIZED') THEN NULL
                           ELSE coalesce(o.failure_code, o.decline_code, 'payment_' || lower(o.ended_as)) END,
               detail = NULL, finished_at = now()
          FROM placed o
         WHERE (i.merchant_id, i.batch_id, i.number) = (o.merchant_id, o.batch_id, o.number)
           AND i.status IN ('UNKNOWN', 'PENDING')
        """,
        limit,
    )
