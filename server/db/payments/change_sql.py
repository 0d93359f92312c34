"""The statement that writes a batch of changes: one text for batches in which something seldom happens, and one for all others.

Most batches hold nothing but captures, each with its log, its postings, its event and the reply. To open the tables that a
refund, a new operation or a finding needs, and to bind the half of all parameters that is about them, would cost PostgreSQL and
the client a third of a small batch for nothing. Both texts are made of the same parts. Parameters: $1 to $26 are common, $27 to
$32 the postings, $33 the wallets' accounts, $34 the lease in seconds; then what is seldom: $35 to $58, requested operations to
$63, refunds to $79.
"""

from server.db.events.events import IS_WANTED

_RARE_INPUT = """), rare AS (
    SELECT * FROM unnest(
        $35::uuid[], $36::boolean[], $37::boolean[], $38::text[], $39::boolean[], $40::integer[], $41::bigint[],
        $42::bigint[], $43::bigint[], $44::timestamptz[], $45::uuid[], $46::text[], $47::bigint[], $48::timestamptz[],
        $49::boolean[], $50::timestamptz[], $51::boolean[], $52::bigint[], $53::bigint[], $54::text[], $55::uuid[], $56::uuid[],
        $57::timestamptz[], $58::text[]
    ) AS r (payment_id, late, suspended, decline_code, did_check_again, checks, refunded_minor,
            disputed_minor, lost_minor, capture_before, pending_id, pending_kind, pending_minor, pending_since,
            is_warned, release_at, is_given_back, pending_taken_minor, fee_returned_minor, finding, psp_account_id, operation_id,
            expires_at, risk)
"""

_RARE_COLUMNS = """,
           late = coalesce(r.late, p.late), suspended = coalesce(r.suspended, p.suspended),
           decline_code = CASE WHEN r.payment_id IS NULL THEN p.decline_code ELSE r.decline_code END,
           did_check_again = coalesce(r.did_check_again, p.did_check_again), checks = coalesce(r.checks, p.checks),
           refunded_minor = coalesce(r.refunded_minor, p.refunded_minor),
           disputed_minor = coalesce(r.disputed_minor, p.disputed_minor), lost_minor = coalesce(r.lost_minor, p.lost_minor),
           capture_before = coalesce(r.capture_before, p.capture_before),
           pending_id = CASE WHEN r.payment_id IS NULL THEN p.pending_id ELSE r.pending_id END,
           pending_kind = CASE WHEN r.payment_id IS NULL THEN p.pending_kind ELSE r.pending_kind END,
           pending_minor = CASE WHEN r.payment_id IS NULL THEN p.pending_minor ELSE r.pending_minor END,
           pending_since = CASE WHEN r.payment_id IS NULL THEN p.pending_since ELSE r.pending_since END,
           is_warned = coalesce(r.is_warned, p.is_warned),
           release_at = CASE WHEN r.payment_id IS NULL THEN p.release_at ELSE r.release_at END,
           is_given_back = coalesce(r.is_given_back, p.is_given_back),
           pending_taken_minor = coalesce(r.pending_taken_minor, p.pending_taken_minor),
           fee_returned_minor = coalesce(r.fee_returned_minor, p.fee_returned_minor),
           psp_account_id = coalesce(r.psp_account_id, p.psp_account_id),
           operation_id = coalesce(r.operation_id, p.operation_id),
           expires_at = coalesce(r.expires_at, p.expires_at), risk = coalesce(r.risk, p.risk)"""

_RARE_JOIN = """      LEFT JOIN rare r ON r.payment_id = l.id
"""

_REQUESTED = """), requested AS (
    INSERT INTO psp_operations (
        merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
    SELECT a.merchant_id, o.id, a.payment_id, a.account_id, o.kind, o.amount_minor, o.currency, 'SENT', a.now
      FROM unnest($59::uuid[], $60::uuid[], $61::text[], $62::bigint[], $63::text[])
           AS o (payment_id, id, kind, amount_minor, currency)
      JOIN applied a USING (payment_id)
    ON CONFLICT (merchant_id, payment_id, id) DO NOTHING
"""

_REFUNDED_OR_FOUND = """), found AS (
    INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at)
    SELECT merchant_id, log_id, finding, payment_id, source || ' brought ' || kind, now
      FROM applied WHERE finding IS NOT NULL
), refunded AS (
    INSERT INTO refunds AS r (
        merchant_id, payment_id, id, psp_account_id, amount_minor, currency, status, from_pending_minor, fee_minor,
        reason, reference, failure_code, is_accepted, checks, due_at, created_at, updated_at)
    SELECT a.merchant_id, a.payment_id, n.id, n.psp_account_id, n.amount_minor, n.currency, n.status, n.from_pending_minor,
           n.fee_minor, n.reason, n.reference, n.failure_code, n.is_accepted, n.checks, n.due_at, n.created_at, n.updated_at
      FROM unnest(
            $64::uuid[], $65::uuid[], $66::uuid[], $67::bigint[], $68::text[], $69::text[], $70::bigint[], $71::bigint[],
            $72::text[], $73::text[], $74::text[], $75::boolean[], $76::integer[], $77::timestamptz[], $78::timestamptz[],
            $79::timestamptz[]
        ) AS n (payment_id, id, psp_account_id, amount_minor, currency, status, from_pending_minor, fee_minor,
                reason, reference, failure_code, is_accepted, checks, due_at, created_at,
                updated_at)
      JOIN applied a USING (payment_id)
    ON CONFLICT (merchant_id, payment_id, id) DO UPDATE
       SET status = excluded.status, reference = excluded.reference, failure_code = excluded.failure_code,
           is_accepted = excluded.is_accepted, checks = excluded.checks, due_at = excluded.due_at,
           updated_at = excluded.updated_at
"""


_TEXT = f"""
/* florin: payments change */
WITH input AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::integer[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::timestamptz[],
        $10::timestamptz[], $11::text[], $12::text[], $13::text[], $14::text[], $15::uuid[], $16::text[], $17::uuid[],
        $18::text[], $19::text[], $20::integer[], $21::uuid[], $22::text[], $23::text[], $24::text[], $25::integer[],
        $26::text[]
    ) AS i (merchant_id, payment_id, version, log_id, status, reference, payment_url, captured_minor, due_at,
            now, source, kind, code, log_reference, operation_id, operation_state, event_id,
            event_type, event_data, entries, psp_account_id, psp_event_id, psp_event_type, reply_key, reply_status,
            reply_body)
{{rare_input}}), locked AS MATERIALIZED (
    SELECT p.id, p.status, p.ctid AS place
      FROM (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $21::uuid[], $22::text[])
                       AS u (merchant_id, payment_id, version, psp_account_id, psp_event_id)
             ORDER BY u.merchant_id, u.payment_id) i
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
           captured_minor = i.captured_minor, due_at = i.due_at, updated_at = i.now,
           live_order_id = CASE WHEN i.status IN ('PENDING', 'UNKNOWN', 'AUTHORIZED') THEN p.live_order_id END{{rare_columns}}
      FROM locked l
      JOIN input i ON i.payment_id = l.id
{{rare_join}}     WHERE p.ctid = l.place
    RETURNING i.*, l.status AS from_status{{rare_finding}}, p.psp_account_id AS account_id
), logs AS (
    INSERT INTO payment_logs (
        merchant_id, id, payment_id, version, source, kind, from_status, to_status, code, reference, created_at)
    SELECT merchant_id, log_id, payment_id, version + 1, source, kind, from_status, status, code, log_reference, now
      FROM applied
{{requested}}), operations AS (
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
{{refunded}}), sequences AS (
    INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq)
    SELECT merchant_id, count(event_type), sum(entries)
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
), replies AS (
    UPDATE idempotency_keys k
       SET reply_status = a.reply_status, reply_body = a.reply_body, in_flight_until = a.now,
           reply_seq = CASE WHEN a.reply_body IS NULL AND a.reply_status IS NOT NULL THEN t.seq END
      FROM applied a
      LEFT JOIN told t ON t.payment_id = a.payment_id
     WHERE k.merchant_id = a.merchant_id AND k.key = a.reply_key AND k.reply_status IS NULL
), entries AS (
    INSERT INTO ledger_entries (
        merchant_id, seq, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
    SELECT a.merchant_id,
           s.last_ledger_seq - count(*) OVER (PARTITION BY a.merchant_id)
                             + row_number() OVER (PARTITION BY a.merchant_id ORDER BY t.number),
           t.transfer_id, t.transfer_kind, t.account, a.payment_id, t.currency, t.amount_minor, a.now
      FROM unnest($27::uuid[], $28::uuid[], $29::text[], $30::text[], $31::text[], $32::bigint[]) WITH ORDINALITY
           AS t (payment_id, transfer_id, transfer_kind, account, currency, amount_minor, number)
      JOIN applied a USING (payment_id) JOIN sequences s USING (merchant_id)
    RETURNING merchant_id, currency, account, amount_minor, created_at
), wallet AS (
    INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
    SELECT merchant_id, currency, account, sum(amount_minor), max(created_at)
      FROM entries WHERE account = ANY ($33::text[])
     GROUP BY merchant_id, currency, account ORDER BY merchant_id, currency, account
    ON CONFLICT (merchant_id, currency, kind)
    DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
), sent AS (
    INSERT INTO deliveries (
        merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
    SELECT t.merchant_id, e.id, t.seq, 'PENDING', e.mode = 'ordered', CASE e.mode WHEN 'ordered' THEN 0 ELSE 1 END,
           CASE e.mode WHEN 'ordered' THEN NULL ELSE now() + make_interval(secs => $34::float8) END, now(), now()
      FROM told t
      JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.enabled AND {IS_WANTED.format("t.type")}
    RETURNING merchant_id, endpoint_id, event_seq, is_ordered
)
SELECT l.id, a.payment_id IS NOT NULL, t.seq, s.endpoint_id, s.is_ordered
  FROM locked l
  LEFT JOIN applied a ON a.payment_id = l.id
  LEFT JOIN told t ON t.payment_id = l.id
  LEFT JOIN sent s ON s.merchant_id = t.merchant_id AND s.event_seq = t.seq
"""  # noqa: S608 - own conditions


def _statement(*, is_usual: bool) -> str:
    parts = {
        "rare_input": _RARE_INPUT,
        "rare_columns": _RARE_COLUMNS,
        "rare_join": _RARE_JOIN,
        "rare_finding": ", r.finding",
        "requested": _REQUESTED,
        "refunded": _REFUNDED_OR_FOUND,
    }
    return _TEXT.format(**(dict.fromkeys(parts, "") if is_usual else parts))


WRITE_ALL = _statement(is_usual=False)
WRITE_USUAL = _statement(is_usual=True)
