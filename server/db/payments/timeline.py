"""The timeline of one payment: everything that is known of it, in order."""

from dataclasses import dataclass
from datetime import datetime

from core.ids import MerchantId, PaymentId
from server.db.connection import Connection


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the timeline. `where` is the part of Florin in which it happened."""

    at: datetime
    where: str
    what: str


_SQL = """
WITH accounts AS (
    SELECT id, coalesce(nullif(name, ''), psp) || ' acct_' || replace(id::text, '-', '') AS account FROM psp_accounts
)
SELECT at, place, what FROM (
    SELECT created_at AS at, 1 AS step, 'request' AS place,
           'POST /v1/payments, Idempotency-Key ' || key ||
           coalesce(', answered ' || reply_status, ', not answered definitively') AS what
      FROM idempotency_keys k
     WHERE k.merchant_id = $1 AND k.payment_id = $2
       AND k.key = (SELECT idempotency_key FROM payment_requests WHERE merchant_id = $1 AND id = $2)
    UNION ALL
    SELECT created_at, 1, 'request',
           CASE WHEN key LIKE '§bat%' THEN operation || ' by a batch, item ' || key
                ELSE 'POST /v1/payments/…/' || CASE operation WHEN 'refund' THEN 'refunds' ELSE operation END
                     || ', Idempotency-Key ' || key END ||
           coalesce(', answered ' || reply_status, ', not answered definitively')
      FROM idempotency_keys
     WHERE merchant_id = $1 AND payment_id = $2 AND operation IN ('capture', 'cancel', 'refund')
    UNION ALL
    SELECT coalesce(b.finished_at, b.started_at), 1, 'batch',
           'item ' || i.number || ' of bat_' || replace(i.batch_id::text, '-', '') || ', ' || i.type || ': ' || i.status
           || coalesce(', ' || i.code, '') || '; the batch is ' || b.status
      FROM batch_items i JOIN batches b ON b.merchant_id = i.merchant_id AND b.id = i.batch_id
     WHERE i.merchant_id = $1 AND i.payment_id = $2
    UNION ALL
    SELECT o.first_sent_at, 2, 'psp operation',
           o.kind || ' op_' || replace(o.id::text, '-', '') || ' of ' || o.amount_minor || ' ' || o.currency
           || ' (minor units) at ' || coalesce(a.account, 'an account that is gone') || ': ' || o.state
      FROM psp_operations o LEFT JOIN accounts a ON a.id = o.psp_account_id
     WHERE o.merchant_id = $1 AND o.payment_id = $2
    UNION ALL
    SELECT received_at, 3, 'psp webhook', type || ' ' || event_id || ': ' || replace(outcome, '_', ' ')
      FROM psp_events WHERE merchant_id = $1 AND payment_id = $2
    UNION ALL
    SELECT created_at, 4, 'payment',
           coalesce(from_status || CASE WHEN from_status = to_status THEN ' stays' ELSE ' → ' || to_status END, to_status)
           || ': ' || kind || ' (' || source || ')' || coalesce(', ' || code, '') || coalesce(', ' || reference, '')
      FROM payment_logs WHERE merchant_id = $1 AND payment_id = $2
    UNION ALL
    SELECT created_at, 5, 'ledger',
           kind || ': ' || to_char(amount_minor, 'FMSG999999999999990') || ' ' || currency || ' ' || account
      FROM ledger_entries WHERE merchant_id = $1 AND payment_id = $2
    UNION ALL
    SELECT created_at, 6, 'event', 'no. ' || seq || ' ' || type || ' evt_' || replace(id::text, '-', '')
      FROM events WHERE merchant_id = $1 AND payment_id = $2
    UNION ALL
    SELECT d.updated_at, 7, 'delivery',
           'event no. ' || d.event_seq || ' to ' || w.url || ': ' || d.state || ' after ' || d.attempts || ' attempt(s)'
           || coalesce(', answered ' || d.last_status, '') || coalesce(', ' || d.last_error, '')
      FROM deliveries d
      JOIN events e ON e.merchant_id = d.merchant_id AND e.seq = d.event_seq
      LEFT JOIN webhook_endpoints w ON w.merchant_id = d.merchant_id AND w.id = d.endpoint_id
     WHERE d.merchant_id = $1 AND e.payment_id = $2
    UNION ALL
    SELECT created_at, 8, 'finding', kind || ' fnd_' || replace(id::text, '-', '') || ': ' || detail
      FROM findings WHERE merchant_id = $1 AND payment_id = $2
    UNION ALL
    SELECT state_at, 9, 'finding', kind || ' is ' || state || ' by ' || operator || coalesce(': ' || note, '')
      FROM findings WHERE merchant_id = $1 AND payment_id = $2 AND state_at IS NOT NULL
    UNION ALL
    SELECT created_at, 9, 'operator', actor || ': ' || action || coalesce(' ' || subject, '') || ': ' || detail
      FROM audit_log WHERE merchant_id = $1 AND payment_id = $2
    UNION ALL
    SELECT updated_at, 9, 'operator', 'opr_' || replace(id::text, '-', '') || ' is ' || state || coalesce(': ' || result, '')
      FROM operator_requests WHERE merchant_id = $1 AND payment_id = $2 AND state NOT IN ('REQUESTED', 'APPROVED')
    UNION ALL
    SELECT last_at, 9, 'alert', title || ': ' || detail FROM alerts
     WHERE merchant_id = $1 AND strpos(title || ' ' || detail, 'pay_' || replace($2::text, '-', '')) > 0
) AS everything
 ORDER BY at, step, what
"""


async def timeline(connection: Connection, merchant_id: MerchantId, payment_id: PaymentId) -> list[Entry]:
    """The timeline of a payment, oldest first."""
    return [Entry(*row) for row in await connection.query(_SQL, merchant_id, payment_id)]
