"""The statement that writes a group of changes with everything that belongs to them.

Parameters: $1 the changes, `ChangeRecord`s; $2 the lease of a new delivery in seconds.
"""

from core.ledger import WalletKind
from server.db import json_records
from server.db.events.events import IS_WANTED
from server.db.ledger.postings import PostingRecord
from server.db.payments.change_row import ChangeRecord, OperationRecord, RefundRecord
from server.db.payments.refunds import UNSETTLED_OF

_WALLETS = ", ".join(f"'{kind.value}'" for kind in WalletKind)

_REFUNDS_NOW = f"json_to_recordset(i.refunds) AS n ({json_records.columns(RefundRecord)})"
_UNSETTLED_REFUND = f"""(
    EXISTS (SELECT FROM {_REFUNDS_NOW} WHERE n.status IN ('PENDING', 'UNKNOWN'))
    OR EXISTS ({UNSETTLED_OF} AND r.id NOT IN (SELECT n.id FROM {_REFUNDS_NOW})))
"""  # noqa: S608 - own columns
"""The payment has a refund whose outcome is open after the change."""

WRITE_CHANGES = f"""
/* florin: payments change */
WITH input AS MATERIALIZED (
    SELECT * FROM json_to_recordset($1::json) AS i ({json_records.columns(ChangeRecord)})
), locked AS MATERIALIZED (
    SELECT p.id, p.status, p.ctid AS place
      FROM (SELECT merchant_id, payment_id, version, psp_account_id, psp_event_id FROM input ORDER BY merchant_id, payment_id) i
     CROSS JOIN LATERAL (
            SELECT p.id, p.status, p.ctid FROM payment_requests p
             WHERE p.merchant_id = i.merchant_id AND p.id = i.payment_id AND p.version = i.version
               AND (i.psp_event_id IS NULL OR NOT EXISTS (
                    SELECT FROM psp_events e
                     WHERE e.merchant_id = i.merchant_id AND e.payment_id = i.payment_id
                       AND e.psp_account_id = i.psp_account_id AND e.event_id = i.psp_event_id))
             LIMIT 1 FOR UPDATE OF p
           ) p
), applied AS (
    UPDATE payment_requests p
       SET status = i.status, version = p.version + 1, reference = i.reference, payment_url = i.payment_url,
           captured_minor = coalesce(i.captured_minor, 0), due_at = i.due_at, updated_at = i.now,
           live_order_id = CASE WHEN i.status IN ('PENDING', 'UNKNOWN', 'AUTHORIZED') THEN p.live_order_id
                                WHEN i.status = 'SUCCEEDED' AND (
                                     p.pays_once = 'always' OR (
                                     p.pays_once = 'unless_refunded' AND (
                                         coalesce(i.refunded_minor, 0) < i.captured_minor OR {_UNSETTLED_REFUND})))
                                THEN p.live_order_id END,
           late = coalesce(i.late, false), suspended = coalesce(i.suspended, false), decline_code = i.decline_code,
           did_check_again = coalesce(i.did_check_again, false), checks = coalesce(i.checks, 0),
           refunded_minor = coalesce(i.refunded_minor, 0), disputed_minor = coalesce(i.disputed_minor, 0),
           lost_minor = coalesce(i.lost_minor, 0), capture_before = i.capture_before, pending_id = i.pending_id,
           pending_kind = i.pending_kind, pending_minor = i.pending_minor, pending_since = i.pending_since,
           is_warned = coalesce(i.is_warned, false), release_at = i.release_at,
           is_given_back = coalesce(i.is_given_back, false), pending_taken_minor = coalesce(i.pending_taken_minor, 0),
           fee_returned_minor = coalesce(i.fee_returned_minor, 0), risk = i.risk,
           is_operators_word = coalesce(i.is_operators_word, false), from_suspense = coalesce(i.from_suspense, false),
           psp_account_id = coalesce(i.new_account_id, p.psp_account_id),
           operation_id = coalesce(i.new_operation_id, p.operation_id),
           expires_at = coalesce(i.new_expires_at, p.expires_at)
      FROM locked l
      JOIN input i ON i.payment_id = l.id
     WHERE p.ctid = l.place
    RETURNING i.*, l.status AS from_status, p.psp_account_id AS account_id
), logs AS (
    INSERT INTO payment_logs (
        merchant_id, id, payment_id, version, source, kind, from_status, to_status, code, reference, created_at)
    SELECT merchant_id, log_id, payment_id, version + 1, source, kind, from_status, status, code, log_reference, now
      FROM applied
), begun AS (
    INSERT INTO psp_operations (
        merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
    SELECT a.merchant_id, o.id, a.payment_id, a.account_id, o.kind, o.amount_minor, o.currency, 'SENT', a.now
      FROM applied a CROSS JOIN LATERAL json_to_recordset(a.operations) AS o ({json_records.columns(OperationRecord)})
    ON CONFLICT (merchant_id, payment_id, id) DO NOTHING
), ended AS (
    UPDATE psp_operations o
       SET state = a.operation_state
      FROM applied a
     WHERE o.merchant_id = a.merchant_id AND o.payment_id = a.payment_id AND o.id = a.operation_id
       AND o.state <> a.operation_state
), psp AS (
    INSERT INTO psp_events (merchant_id, psp_account_id, event_id, payment_id, type, outcome, received_at)
    SELECT merchant_id, psp_account_id, psp_event_id, payment_id, psp_event_type, 'applied', now
      FROM applied WHERE psp_event_id IS NOT NULL
    ON CONFLICT (merchant_id, payment_id, psp_account_id, event_id) DO NOTHING
), found AS (
    INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at)
    SELECT merchant_id, log_id, finding, payment_id, source || ' brought ' || kind, now
      FROM applied WHERE finding IS NOT NULL
), refunded AS (
    INSERT INTO refunds AS r (
        merchant_id, payment_id, id, psp_account_id, amount_minor, currency, status, from_pending_minor, fee_minor,
        reason, reference, failure_code, is_accepted, checks, due_at, created_at, updated_at, is_operators_word)
    SELECT a.merchant_id, a.payment_id, n.id, n.psp_account_id, n.amount_minor, n.currency, n.status, n.from_pending_minor,
           n.fee_minor, n.reason, n.reference, n.failure_code, n.is_accepted, n.checks, n.due_at, n.created_at, n.updated_at,
           n.is_operators_word
      FROM applied a CROSS JOIN LATERAL json_to_recordset(a.refunds) AS n ({json_records.columns(RefundRecord)})
    ON CONFLICT (merchant_id, payment_id, id) DO UPDATE
       SET status = excluded.status, reference = excluded.reference, failure_code = excluded.failure_code,
           is_accepted = excluded.is_accepted, checks = excluded.checks, due_at = excluded.due_at,
           updated_at = excluded.updated_at, from_pending_minor = excluded.from_pending_minor,
           is_operators_word = excluded.is_operators_word
), sequences AS (
    INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq)
    SELECT merchant_id, count(event_type), coalesce(sum(entries), 0)
      FROM applied WHERE event_type IS NOT NULL OR entries > 0 GROUP BY merchant_id ORDER BY merchant_id
    ON CONFLICT (merchant_id) DO UPDATE
       SET last_seq = s.last_seq + excluded.last_seq, last_ledger_seq = s.last_ledger_seq + excluded.last_ledger_seq
    RETURNING s.merchant_id, s.last_seq, s.last_ledger_seq
), told AS (
    INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
    SELECT a.merchant_id,
           s.last_seq - count(*) OVER (PARTITION BY a.merchant_id)
                      + row_number() OVER (PARTITION BY a.merchant_id ORDER BY a.event_id),
           a.event_id, a.event_type, a.payment_id, a.event_data, a.now
      FROM applied a JOIN sequences s USING (merchant_id) WHERE a.event_type IS NOT NULL
    RETURNING merchant_id, seq, payment_id, type
), answers AS MATERIALIZED (
    SELECT a.merchant_id, a.reply_key, a.reply_status, a.reply_body, a.now, t.seq
      FROM applied a LEFT JOIN told t ON t.payment_id = a.payment_id WHERE a.reply_key IS NOT NULL
), replies AS (
    UPDATE idempotency_keys k
       SET reply_status = a.reply_status, reply_body = a.reply_body, in_flight_until = a.now,
           reply_seq = CASE WHEN a.reply_body IS NULL AND a.reply_status IS NOT NULL THEN a.seq END
      FROM answers a
     WHERE k.merchant_id = a.merchant_id AND k.key = a.reply_key AND k.reply_status IS NULL
), entries AS (
    INSERT INTO ledger_entries (
        merchant_id, seq, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
    SELECT a.merchant_id,
           s.last_ledger_seq - count(*) OVER (PARTITION BY a.merchant_id)
                             + row_number() OVER (PARTITION BY a.merchant_id ORDER BY a.log_id, t.number),
           a.transfer_id, a.transfer_kind, t.account, a.payment_id, t.currency, t.amount_minor, a.now
      FROM applied a
      JOIN sequences s USING (merchant_id)
     CROSS JOIN LATERAL ROWS FROM (json_to_recordset(a.postings) AS ({json_records.columns(PostingRecord)}))
           WITH ORDINALITY AS t (account, currency, amount_minor, number)
    RETURNING merchant_id, currency, account, amount_minor, created_at
), wallet AS (
    INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
    SELECT merchant_id, currency, account, sum(amount_minor), max(created_at)
      FROM entries WHERE account IN ({_WALLETS})
     GROUP BY merchant_id, currency, account ORDER BY merchant_id, currency, account
    ON CONFLICT (merchant_id, currency, kind)
    DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
), sent AS (
    INSERT INTO deliveries (
        merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
    SELECT t.merchant_id, e.id, t.seq, 'PENDING', e.mode = 'ordered', CASE e.mode WHEN 'ordered' THEN 0 ELSE 1 END,
           CASE e.mode WHEN 'ordered' THEN NULL ELSE now() + make_interval(secs => $2::float8) END, now(), now()
      FROM told t
      JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.enabled AND {IS_WANTED.format("t.type")}
    RETURNING merchant_id, endpoint_id, event_seq, is_ordered
)
SELECT l.id AS payment_id, a.payment_id IS NOT NULL AS is_applied, t.seq, s.endpoint_id, s.is_ordered
  FROM locked l
  LEFT JOIN applied a ON a.payment_id = l.id
  LEFT JOIN told t ON t.payment_id = l.id
  LEFT JOIN sent s ON s.merchant_id = t.merchant_id AND s.event_seq = t.seq
"""  # noqa: S608 - own columns and conditions
