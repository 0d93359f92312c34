"""Checks of money: promise:money-conserved and promise:one-effect, for every payment, refund, dispute and payout."""

from server.db.doctor.check import Check, Promise
from server.db.ledger.hash_chain import CANONICAL
from server.db.payments.idempotency_keys import KEPT

MONEY_CHECKS = (
    Check(
        Promise.MONEY_CONSERVED,
        "every transfer sums to zero per currency",
        """
        SELECT merchant_id, transfer_id, kind, currency, sum(amount_minor) AS off_by
          FROM ledger_entries GROUP BY merchant_id, transfer_id, kind, currency HAVING sum(amount_minor) <> 0
        """,
    ),
    Check(
        Promise.MONEY_CONSERVED,
        "every wallet is the sum of its ledger entries",
        """
        SELECT merchant_id, currency, kind, w.balance_minor, e.total
          FROM (SELECT merchant_id, currency, kind, balance_minor FROM wallets) w
          FULL JOIN (
                SELECT merchant_id, currency, kind, sum(amount_minor) AS total
                  FROM wallet_adjustments GROUP BY merchant_id, currency, kind
               ) e USING (merchant_id, currency, kind)
         WHERE coalesce(w.balance_minor, 0) <> coalesce(e.total, 0)
        """,
    ),
    Check(
        Promise.MONEY_CONSERVED,
        "a merchant's ledger entries are numbered without a gap",
        """
        SELECT coalesce(s.merchant_id, e.merchant_id) AS merchant_id, s.last_ledger_seq, e.first, e.last, e.total
          FROM merchant_sequences s
          FULL JOIN (
                SELECT merchant_id, min(seq) AS first, max(seq) AS last, count(*) AS total
                  FROM ledger_entries GROUP BY merchant_id
               ) e ON e.merchant_id = s.merchant_id
         WHERE coalesce(s.last_ledger_seq, 0) <> coalesce(e.total, 0) OR e.first <> 1 OR e.last <> e.total
        """,
    ),
    Check(
        Promise.MONEY_CONSERVED,
        "the hash chain of every merchant follows from its ledger",
        f"""
        WITH linked AS (
            SELECT c.merchant_id, c.seq, c.hash,
                   lag(c.seq) OVER w AS previous_seq,
                   coalesce(lag(c.hash) OVER w, decode(repeat('00', 32), 'hex')) AS previous_hash
              FROM ledger_chain c WINDOW w AS (PARTITION BY c.merchant_id ORDER BY c.seq)
        )
        SELECT l.merchant_id, l.seq, l.previous_seq, e.transfer_id
          FROM linked l LEFT JOIN ledger_entries e ON e.merchant_id = l.merchant_id AND e.seq = l.seq
         WHERE e.seq IS NULL OR coalesce(l.previous_seq, 0) <> l.seq - 1
            OR l.hash <> sha256(l.previous_hash || convert_to({CANONICAL}, 'UTF8'))
        """,  # noqa: S608 - a constant of ours
    ),
    Check(
        Promise.MONEY_CONSERVED,
        "ledger, chain, logs, events and audit are append-only",
        """
        SELECT wanted.name AS unprotected
          FROM unnest(ARRAY['ledger_entries', 'ledger_chain', 'payment_logs', 'events', 'audit_log']) AS wanted (name)
         WHERE NOT EXISTS (
                SELECT FROM pg_trigger t JOIN pg_proc f ON f.oid = t.tgfoid
                 WHERE t.tgrelid = wanted.name::regclass AND t.tgname = wanted.name || '_append_only' AND t.tgenabled = 'O'
                   AND f.prosrc LIKE '%RAISE EXCEPTION%')
        """,
    ),
    Check(
        Promise.ONE_EFFECT,
        "a payment is charged in the ledger exactly once if it succeeded, otherwise never",
        """
        SELECT p.merchant_id, p.id, p.status, p.captured_minor, p.currency, c.credited, c.fee, c.receivable, c.currencies
          FROM payment_requests p
          FULL JOIN (
                SELECT merchant_id, payment_id, string_agg(DISTINCT currency, ' ') AS currencies,
                       coalesce(sum(amount_minor) FILTER (
                           WHERE account IN ('merchant_available', 'merchant_pending')), 0) AS credited,
                       coalesce(sum(amount_minor) FILTER (WHERE account = 'platform_fees'), 0) AS fee,
                       sum(amount_minor) FILTER (
                           WHERE account LIKE 'psp_receivable:%' OR account = 'suspense') AS receivable
                  FROM ledger_entries WHERE kind IN ('charge', 'operator_charge', 'operator_charge_reversal')
                 GROUP BY merchant_id, payment_id
               ) c ON c.merchant_id = p.merchant_id AND c.payment_id = p.id
         WHERE p.id IS NULL
            OR (c.currencies IS NULL AND p.captured_minor <> 0)
            OR (c.currencies IS NOT NULL AND (c.credited + c.fee, c.receivable, c.currencies)
                IS DISTINCT FROM (p.captured_minor::numeric, -p.captured_minor::numeric, p.currency))
            OR c.fee <> least(
                (p.captured_minor * p.fee_basis_points + 5000) / 10000 + p.fee_fixed_minor, p.captured_minor)
        """,
        of_payments=True,
    ),
    Check(
        Promise.ONE_EFFECT,
        "the refunded amount is the sum of the refunds, each posted once and returned once if it failed",
        """
        SELECT p.merchant_id, p.id, p.refunded_minor, r.refunded, r.off
          FROM payment_requests p
          FULL JOIN (
                SELECT r.merchant_id, r.payment_id,
                       sum(r.amount_minor) FILTER (WHERE r.status <> 'FAILED') AS refunded,
                       count(*) FILTER (
                           WHERE coalesce(e.taken, 0) - coalesce(e.given, 0)
                                     <> CASE WHEN r.status = 'FAILED' THEN 0 ELSE r.amount_minor END
                              OR coalesce(e.taken, 0) NOT IN (r.amount_minor, r.amount_minor + e.again)
                              OR e.again NOT IN (0, r.amount_minor)) AS off
                  FROM refunds r
                  LEFT JOIN (
                        SELECT merchant_id, transfer_id,
                               sum(amount_minor) FILTER (WHERE kind IN ('refund', 'refund_again')) AS taken,
                               coalesce(sum(amount_minor) FILTER (WHERE kind = 'refund_again'), 0) AS again,
                               -sum(amount_minor) FILTER (WHERE kind IN ('refund_reversal', 'operator_refund_reversal')) AS given
                          FROM ledger_entries
                         WHERE kind IN ('refund', 'refund_again', 'refund_reversal', 'operator_refund_reversal')
                           AND account LIKE 'psp_receivable:%'
                         GROUP BY merchant_id, transfer_id
                       ) e ON e.merchant_id = r.merchant_id AND e.transfer_id = r.id
                 GROUP BY r.merchant_id, r.payment_id
               ) r ON r.merchant_id = p.merchant_id AND r.payment_id = p.id
         WHERE p.id IS NULL OR p.refunded_minor <> coalesce(r.refunded, 0) OR r.off > 0
        """,
        of_payments=True,
    ),
    Check(
        Promise.ONE_EFFECT,
        "the disputed money in the ledger is that of the payments",
        """
        SELECT coalesce(p.merchant_id, e.merchant_id) AS merchant_id, p.disputed, e.held
          FROM (
                SELECT merchant_id, currency, sum(disputed_minor) AS disputed FROM payment_requests GROUP BY merchant_id, currency
               ) p
          FULL JOIN (
                SELECT merchant_id, currency, sum(amount_minor) AS held
                  FROM ledger_entries WHERE account = 'disputes' GROUP BY merchant_id, currency
               ) e USING (merchant_id, currency)
         WHERE coalesce(p.disputed, 0) <> coalesce(e.held, 0)
        """,
    ),
    Check(
        Promise.ONE_EFFECT,
        "a payout is posted as its status says",
        """
        SELECT p.merchant_id, p.id, p.status, e.transit, e.bank
          FROM payouts p
          LEFT JOIN (
                SELECT merchant_id, transfer_id,
                       coalesce(sum(amount_minor) FILTER (WHERE account = 'payouts_in_transit'), 0) AS transit,
                       coalesce(sum(amount_minor) FILTER (WHERE account = 'bank'), 0) AS bank
                  FROM ledger_entries WHERE account IN ('payouts_in_transit', 'bank') GROUP BY merchant_id, transfer_id
               ) e ON e.merchant_id = p.merchant_id AND e.transfer_id = p.id
         WHERE (coalesce(e.transit, 0), coalesce(e.bank, 0)) IS DISTINCT FROM CASE p.status
                   WHEN 'PENDING' THEN (p.amount_minor::numeric, 0::numeric)
                   WHEN 'SUCCEEDED' THEN (0::numeric, p.amount_minor::numeric)
                   ELSE (0::numeric, 0::numeric) END
        """,
    ),
    Check(
        Promise.ONE_EFFECT,
        "money that matches no payment is in suspense, with a finding",
        """
        SELECT p.merchant_id, p.id, p.suspended, l.entries, f.findings
          FROM payment_requests p
          LEFT JOIN (
                SELECT merchant_id, payment_id, count(*) AS entries FROM ledger_entries
                 WHERE kind IN ('suspense', 'suspense_again', 'operator_charge_reversal') AND account = 'suspense'
                 GROUP BY merchant_id, payment_id
               ) l ON l.merchant_id = p.merchant_id AND l.payment_id = p.id
          LEFT JOIN (
                SELECT merchant_id, payment_id, count(*) AS findings FROM findings
                 WHERE kind IN ('evidence_mismatch', 'operator_contradicted') GROUP BY merchant_id, payment_id
               ) f ON f.merchant_id = p.merchant_id AND f.payment_id = p.id
         WHERE p.suspended <> (l.entries IS NOT NULL) OR (p.suspended AND f.findings IS NULL)
        """,
        of_payments=True,
    ),
    Check(
        Promise.ONE_EFFECT,
        "an idempotency key and its payment belong together",
        """
        SELECT coalesce(p.merchant_id, k.merchant_id) AS merchant_id, p.id, k.key, k.payment_id
          FROM payment_requests p
          FULL JOIN idempotency_keys k
            ON k.merchant_id = p.merchant_id AND k.payment_id = p.id
               AND (k.operation <> 'create' OR k.key = p.idempotency_key)
         WHERE (p.id IS NULL AND k.operation NOT IN ('endpoint', 'batch'))
            OR (p.created_at > (SELECT coalesce(min(created_at), 'infinity') FROM idempotency_keys)
                AND NOT EXISTS (
                    SELECT FROM idempotency_keys o WHERE o.merchant_id = p.merchant_id AND o.key = p.idempotency_key
                       AND o.payment_id = p.id AND o.operation = 'create'))
        """,
    ),
    Check(
        Promise.ONE_EFFECT,
        "a key has made one payment, whether or not it is still stored",
        f"""
        SELECT merchant_id, idempotency_key, id, created_at, created_at - previous_at AS after
          FROM (
                SELECT merchant_id, idempotency_key, id, created_at,
                       lag(created_at) OVER (PARTITION BY merchant_id, idempotency_key ORDER BY created_at, id) AS previous_at
                  FROM payment_requests p
                 WHERE (merchant_id, idempotency_key) IN (
                        SELECT merchant_id, idempotency_key FROM payment_requests
                         GROUP BY merchant_id, idempotency_key HAVING count(*) > 1)
               ) again
         WHERE created_at - previous_at < interval '{KEPT.days} days'
        """,  # noqa: S608 - a constant of ours
    ),
    Check(
        Promise.MONEY_CONSERVED,
        "every transfer belongs to an existing object, in its currency",
        """
        SELECT e.merchant_id, e.transfer_id, e.kind, e.currency, e.payment_id
          FROM (SELECT DISTINCT merchant_id, transfer_id, kind, currency, payment_id FROM ledger_entries) e
         WHERE NOT CASE
                   WHEN e.kind IN ('charge', 'release') THEN e.transfer_id = e.payment_id AND EXISTS (
                        SELECT FROM payment_requests p
                         WHERE p.merchant_id = e.merchant_id AND p.id = e.payment_id AND p.currency = e.currency)
                   WHEN e.kind IN ('refund', 'refund_again', 'refund_reversal', 'operator_refund_reversal') THEN EXISTS (
                        SELECT FROM refunds r
                         WHERE r.merchant_id = e.merchant_id AND r.payment_id = e.payment_id AND r.id = e.transfer_id
                           AND r.currency = e.currency)
                   WHEN e.kind IN ('payout', 'payout_success', 'payout_reversal') THEN EXISTS (
                        SELECT FROM payouts o
                         WHERE o.merchant_id = e.merchant_id AND o.id = e.transfer_id AND o.currency = e.currency)
                   WHEN e.kind IN ('dispute', 'dispute_won', 'dispute_lost', 'suspense', 'suspense_again', 'operator_charge',
                        'operator_charge_reversal', 'operator_release') THEN EXISTS (
                        SELECT FROM payment_requests p WHERE p.merchant_id = e.merchant_id AND p.id = e.payment_id)
                   WHEN e.kind IN ('adjustment', 'suspense_return', 'suspense_credit') THEN EXISTS (
                        SELECT FROM operator_requests o
                         WHERE o.merchant_id = e.merchant_id AND o.id = e.transfer_id AND o.state IN ('APPROVED', 'DONE'))
                   ELSE false END
        """,
    ),
    Check(
        Promise.MONEY_CONSERVED,
        "returned fees are those of the refunds, and never more than the fee",
        """
        SELECT p.merchant_id, p.id, p.fee_returned_minor, r.fees, l.posted
          FROM payment_requests p
          LEFT JOIN (
                SELECT merchant_id, payment_id, sum(fee_minor) AS fees FROM refunds
                 WHERE status <> 'FAILED' GROUP BY merchant_id, payment_id
               ) r ON r.merchant_id = p.merchant_id AND r.payment_id = p.id
          LEFT JOIN (
                SELECT merchant_id, payment_id, -sum(amount_minor) AS posted FROM ledger_entries
                 WHERE account = 'platform_fees'
                   AND kind NOT IN ('charge', 'operator_charge', 'operator_charge_reversal', 'adjustment')
                 GROUP BY merchant_id, payment_id
               ) l ON l.merchant_id = p.merchant_id AND l.payment_id = p.id
         WHERE p.captured_minor > 0
           AND (p.fee_returned_minor <> coalesce(r.fees, 0) OR coalesce(r.fees, 0) <> coalesce(l.posted, 0)
                OR p.fee_returned_minor > least(
                (p.captured_minor * p.fee_basis_points + 5000) / 10000 + p.fee_fixed_minor, p.captured_minor))
        """,
        of_payments=True,
    ),
    Check(
        Promise.ONE_EFFECT,
        "money is released once, and no more than its payment brought in",
        """
        SELECT p.merchant_id, p.id, p.release_at, p.captured_minor, l.released
          FROM payment_requests p
          JOIN (
                SELECT merchant_id, payment_id, sum(amount_minor) AS released
                  FROM ledger_entries WHERE kind = 'release' AND account = 'merchant_available' GROUP BY merchant_id, payment_id
               ) l ON l.merchant_id = p.merchant_id AND l.payment_id = p.id
         WHERE p.release_at IS NOT NULL OR l.released > p.captured_minor - p.pending_taken_minor
        """,
        of_payments=True,
    ),
    Check(
        Promise.MONEY_CONSERVED,
        "the hash chain is at most an hour behind the ledger",
        """
        SELECT e.merchant_id, min(e.seq) AS first_missing, count(*) AS entries
          FROM ledger_entries e
         WHERE e.created_at < now() - interval '1 hour'
           AND NOT EXISTS (SELECT FROM ledger_chain c WHERE c.merchant_id = e.merchant_id AND c.seq = e.seq)
         GROUP BY e.merchant_id
        """,
    ),
    Check(
        Promise.MONEY_CONSERVED,
        "pending money belongs to payments that are not released yet",
        """
        SELECT w.merchant_id, w.currency, w.balance_minor, p.unreleased
          FROM wallets w
          LEFT JOIN (
                SELECT merchant_id, currency,
                       sum(captured_minor - pending_taken_minor
                           - least((captured_minor * fee_basis_points + 5000) / 10000 + fee_fixed_minor, captured_minor)
                       ) AS unreleased
                  FROM payment_requests WHERE release_at IS NOT NULL GROUP BY merchant_id, currency
               ) p ON p.merchant_id = w.merchant_id AND p.currency = w.currency
         WHERE w.kind = 'merchant_pending' AND w.balance_minor > coalesce(p.unreleased, 0)
        """,
    ),
)
