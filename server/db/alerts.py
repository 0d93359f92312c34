"""Alerts for the operators, written in the transaction of what they report and sent by `server.jobs.alerts`.

There is one row per key. An alert noted again soon after it was sent is counted, and sent again only after `REPEAT_SECONDS`. The
time of a note is when the thing happened, so noting the same occurrence twice changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import MerchantId
from server.db.connection import Connection

REPEAT_SECONDS = 3_600.0
NOBODY = MerchantId(UUID(int=0))
"""The merchant id of alerts that belong to no merchant."""

TITLE_LENGTH_MAX, DETAIL_LENGTH_MAX = 500, 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert. Two alerts with the same `key` are the same alert."""

    key: str
    kind: str
    title: str
    detail: str = ""
    merchant_id: MerchantId = NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedAlert:
    """An alert as it is stored."""

    alert: Alert
    times: int
    first_at: datetime
    last_at: datetime
    sent_at: datetime | None
    due_at: datetime | None
    attempts: int
    last_error: str | None


_COLUMNS = "merchant_id, key, kind, title, detail, times, first_at, last_at, sent_at, due_at, attempts, last_error"


def _noted(row: Sequence[object]) -> NotedAlert:
    merchant_id, key, kind, title, detail, *rest = row
    names = ("times", "first_at", "last_at", "sent_at", "due_at", "attempts", "last_error")
    alert = Alert(merchant_id=merchant_id, key=key, kind=kind, title=title, detail=detail)  # type: ignore[arg-type] # of the columns
    return NotedAlert(alert=alert, **dict(zip(names, rest, strict=True)))  # type: ignore[arg-type] # of the columns


async def note_alert(connection: Connection, alert: Alert, *, now: datetime) -> None:
    """Queue an alert: at once, or later if it was sent recently. `now` is when it happened."""
    await connection.run(
        """
        INSERT INTO alerts AS a (merchant_id, key, kind, title, detail, first_at, last_at, due_at)
        VALUES ($1, $2, $3, $4, $5, $6, $6, $6)
        ON CONFLICT (merchant_id, key) DO UPDATE
           SET title = excluded.title, detail = excluded.detail, times = a.times + 1, last_at = excluded.last_at,
               due_at = coalesce(a.due_at, greatest(excluded.due_at, a.sent_at + make_interval(secs => $7::float8)))
         WHERE a.last_at < excluded.last_at
        """,
        alert.merchant_id,
        alert.key[:200],
        alert.kind,
        alert.title[:TITLE_LENGTH_MAX],
        alert.detail[:DETAIL_LENGTH_MAX],
        now,
        REPEAT_SECONDS,
    )


async def claim_due_alerts(connection: Connection, *, limit: int, lease_seconds: float, now: datetime) -> list[NotedAlert]:
    """Claim the alerts to send now for this worker, those that have waited longest first."""
    rows = await connection.query(
        f"""
        UPDATE alerts a SET due_at = $1::timestamptz + make_interval(secs => $3::float8), attempts = a.attempts + 1
          FROM (SELECT merchant_id AS of_merchant, key AS of_key FROM alerts
                 WHERE due_at <= $1 ORDER BY due_at, merchant_id, key LIMIT $2) waiting
         WHERE a.merchant_id = waiting.of_merchant AND a.key = waiting.of_key AND a.due_at <= $1
        RETURNING {_COLUMNS}
        """,  # noqa: S608 - own columns
        now,
        limit,
        lease_seconds,
    )
    return sorted(map(_noted, rows), key=lambda one: one.last_at)


async def end_alert(
    connection: Connection, noted: NotedAlert, *, sent_at: datetime | None, due_at: datetime | None, error: str | None
) -> None:
    """Record that a claimed alert was sent at `sent_at`, or is to be sent again at `due_at`; neither means giving up.

    If it happened again meanwhile, it stays queued for later. Changes nothing if another worker has claimed it since.
    """
    await connection.run(
        """
        UPDATE alerts SET sent_at = coalesce($3, sent_at), last_error = $5,
               due_at = CASE WHEN $4::timestamptz IS NULL AND last_at > $6
                             THEN coalesce($3, last_at) + make_interval(secs => $8::float8) ELSE $4 END,
               attempts = CASE WHEN $4::timestamptz IS NULL THEN 0 ELSE attempts END
         WHERE merchant_id = $1 AND key = $2 AND due_at = $7
        """,
        noted.alert.merchant_id,
        noted.alert.key,
        sent_at,
        due_at,
        error[:500] if error is not None else None,
        noted.last_at,
        noted.due_at,
        REPEAT_SECONDS,
    )


async def count_due_alerts(connection: Connection, *, now: datetime) -> int:
    """The number of alerts that are still waiting to be sent."""
    rows = await connection.query("SELECT count(*) FROM alerts WHERE due_at <= $1", now)
    return int(rows[0][0])


async def list_alerts(connection: Connection, *, limit: int) -> list[NotedAlert]:
    """The latest alerts, newest first."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM alerts ORDER BY last_at DESC LIMIT $1",  # noqa: S608 - own columns
        limit,
    )
    return [_noted(row) for row in rows]


async def prune_alerts(connection: Connection, *, last_before: datetime, limit: int) -> int:
    """Delete up to that many old alerts that are not waiting to be sent. Returns the number deleted."""
    return await connection.run(
        """
        DELETE FROM alerts a USING (SELECT merchant_id, key FROM alerts WHERE last_at < $1 AND due_at IS NULL LIMIT $2) old
         WHERE a.merchant_id = old.merchant_id AND a.key = old.key
        """,
        last_before,
        limit,
    )
