"""The promises of the design, as SQL that finds what breaks them. Read-only; used by `florin doctor` and by every test.

Each check selects offending rows; a database that keeps the promises yields none. The checks see one snapshot, so they may
run while payments are taken.
"""

from dataclasses import dataclass
from typing import Any

import trio

from core.retry import DELIVERY_DELAYS_SECONDS, RECHECK_DELAYS_SECONDS
from server.db.chain import CANONICAL
from server.db.connection import Connection

ROWS_MAX = 20
ROLLBACK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One way in which a promise could be broken. `promise` is its number in the design, section 1."""

    promise: int
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class Violation:
    """Offending rows of a check, at most `ROWS_MAX` of them."""

    check: Check
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


CHECKS = (
    Check(
        1,
        "every transfer sums to zero per currency",
        """
        SELECT merchant_id, transfer_id, kind, currency, sum(amount_minor) AS off_by
          FROM ledger_entries GROUP BY merchant_id, transfer_id, kind, currency HAVING sum(amount_minor) <> 0
        """,
    ),
    Check(
        1,
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
        1,
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
        1,
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
        2,
        "a payment is charged in the ledger exactly once if it succeeded, else never",
        """
        SELECT p.merchant_id, p.id, p.status, p.captured_minor, p.currency, c.credited, c.fee, c.receivable, c.currencies FROM
        payment_requests p FULL JOIN ( SELECT merchant_id, payment_id, string_agg(DISTINCT currency, ' ') AS currencies,
        coalesce(sum(amount_minor) FILTER ( WHERE account IN ('merchant_available', 'merchant_pending')), 0) AS credited,
        coalesce(sum(amount_minor) FILTER (WHERE account = 'platform_fees'), 0) AS fee, sum(amount_minor) FILTER (WHERE account
        LIKE 'psp_receivable:%') AS receivable FROM ledger_entries WHERE kind = 'charge' GROUP BY merchant_id, payment_id ) c ON
        c.merchant_id = p.merchant_id AND c.payment_id = p.id WHERE p.id IS NULL OR (c.currencies IS NULL AND p.captured_minor <>
        0) OR (c.currencies IS NOT NULL AND (c.credited + c.fee, c.receivable, c.currencies) IS DISTINCT FROM (p.captured_minor,
        -p.captured_minor, p.currency)) OR c.fee <> least( (p.captured_minor * p.fee_basis_points + 5000) / 10000 +
        p.fee_fixed_minor, p.captured_minor)
        """,
    ),
    Check(
        2,
        "what was refunded is the sum of its refunds, each posted once and given back once where it failed",
        """
        SELECT p.merchant_id, p.id, p.refunded_minor, r.refunded, r.off
          FROM payment_requests p
          FULL JOIN (
                SELECT r.merchant_id, r.payment_id,
                       sum(r.amount_minor) FILTER (WHERE r.status <> 'FAILED') AS refunded,
                       count(*) FILTER (
                           WHERE coalesce(e.taken, 0) <> r.amount_minor
                              OR coalesce(e.given, 0) <> CASE WHEN r.status = 'FAILED' THEN r.amount_minor ELSE 0 END) AS off
                  FROM refunds r
                  LEFT JOIN LATERAL (
                        SELECT sum(amount_minor) FILTER (WHERE kind = 'refund') AS taken,
                               -sum(amount_minor) FILTER (WHERE kind = 'refund_reversal') AS given
                          FROM ledger_entries l
                         WHERE l.merchant_id = r.merchant_id AND l.transfer_id = r.id AND l.account LIKE 'psp_receivable:%'
                       ) e ON true
                 GROUP BY r.merchant_id, r.payment_id
               ) r ON r.merchant_id = p.merchant_id AND r.payment_id = p.id
         WHERE p.id IS NULL OR p.refunded_minor <> coalesce(r.refunded, 0) OR r.off > 0
        """,
    ),
    Check(
        2,
        "money in dispute is what the payments say",
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
        2,
        "a payout is in the ledger as its status says",
        """
        SELECT p.merchant_id, p.id, p.status, e.transit, e.bank
          FROM payouts p
          LEFT JOIN LATERAL (
                SELECT coalesce(sum(amount_minor) FILTER (WHERE account = 'payouts_in_transit'), 0) AS transit,
                       coalesce(sum(amount_minor) FILTER (WHERE account = 'bank'), 0) AS bank
                  FROM ledger_entries l WHERE l.merchant_id = p.merchant_id AND l.transfer_id = p.id
               ) e ON true
         WHERE (e.transit, e.bank) IS DISTINCT FROM CASE p.status
                   WHEN 'PENDING' THEN (p.amount_minor::numeric, 0::numeric)
                   WHEN 'SUCCEEDED' THEN (0::numeric, p.amount_minor::numeric)
                   ELSE (0::numeric, 0::numeric) END
        """,
    ),
    Check(
        2,
        "money that matches no payment is in suspense, with a finding",
        """
        SELECT p.merchant_id, p.id, p.suspended, l.entries, f.findings
          FROM payment_requests p
          LEFT JOIN LATERAL (
                SELECT count(*) AS entries FROM ledger_entries e
                 WHERE e.merchant_id = p.merchant_id AND e.payment_id = p.id AND e.kind = 'suspense' AND e.account = 'suspense'
               ) l ON true
          LEFT JOIN LATERAL (
                SELECT count(*) AS findings FROM findings f
                 WHERE f.merchant_id = p.merchant_id AND f.payment_id = p.id AND f.kind = 'evidence_mismatch'
               ) f ON true
         WHERE p.suspended <> (l.entries > 0) OR (p.suspended AND f.findings = 0)
        """,
    ),
    Check(
        2,
        "an idempotency key and its payment belong together",
        """
        SELECT coalesce(p.merchant_id, k.merchant_id) AS merchant_id, p.id, k.key, k.payment_id
          FROM payment_requests p
          FULL JOIN idempotency_keys k
            ON k.merchant_id = p.merchant_id AND k.payment_id = p.id
               AND (k.operation <> 'create' OR k.key = p.idempotency_key)
         WHERE p.id IS NULL
            OR (p.created_at > (SELECT coalesce(min(created_at), 'infinity') FROM idempotency_keys)
                AND NOT EXISTS (
                    SELECT FROM idempotency_keys o WHERE o.merchant_id = p.merchant_id AND o.key = p.idempotency_key
                       AND o.payment_id = p.id AND o.operation = 'create'))
        """,
    ),
    Check(
        3,
        "a reply of success names a payment that is stored",
        """
        SELECT k.merchant_id, k.key, k.reply_status
          FROM idempotency_keys k
         WHERE k.reply_status BETWEEN 200 AND 299
           AND NOT EXISTS (SELECT FROM payment_requests p WHERE p.merchant_id = k.merchant_id AND p.id = k.payment_id)
        """,
    ),
    Check(
        4,
        "an open or unknown payment is never forgotten",
        """
        SELECT p.merchant_id, p.id, p.status, p.checks, p.due_at
          FROM payment_requests p
         WHERE (p.status IN ('PENDING', 'UNKNOWN') OR p.pending_id IS NOT NULL OR NOT p.is_released
                OR (p.status = 'AUTHORIZED' AND p.capture_before IS NOT NULL))
           AND (p.due_at IS NULL OR p.due_at < now() - interval '1 hour'
                OR p.due_at > greatest(
                    p.expires_at, p.capture_before, p.updated_at + interval '25 hours', now() + interval '25 hours',
                    p.updated_at + make_interval(secs => p.settlement_delay_seconds) + interval '1 hour'))
           AND NOT EXISTS (SELECT FROM findings f WHERE f.merchant_id = p.merchant_id AND f.payment_id = p.id)
        """,
    ),
    Check(
        4,
        "an unsettled refund is never forgotten",
        """
        SELECT r.merchant_id, r.payment_id, r.id, r.status, r.due_at
          FROM refunds r
         WHERE r.status IN ('PENDING', 'UNKNOWN') AND (r.due_at IS NULL OR r.due_at < now() - interval '1 hour')
           AND NOT EXISTS (SELECT FROM findings f WHERE f.merchant_id = r.merchant_id AND f.payment_id = r.payment_id)
        """,
    ),
    Check(
        4,
        "every pending operation and every refund was committed as an operation",
        """
        SELECT p.merchant_id, p.id AS payment_id, p.pending_id AS operation_id FROM payment_requests p
         WHERE p.pending_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM psp_operations o WHERE o.merchant_id = p.merchant_id AND o.payment_id = p.id AND o.id = p.pending_id)
        UNION ALL
        SELECT r.merchant_id, r.payment_id, r.id FROM refunds r
         WHERE NOT EXISTS (
                SELECT FROM psp_operations o
                 WHERE o.merchant_id = r.merchant_id AND o.payment_id = r.payment_id AND o.id = r.id AND o.kind = 'refund')
        """,
    ),
    Check(
        4,
        "a payment has its operation at the PSP, of its own amount",
        """
        SELECT p.merchant_id, p.id, p.operation_id, o.id AS operation, o.amount_minor
          FROM payment_requests p
          FULL JOIN (SELECT * FROM psp_operations WHERE kind IN ('intent', 'charge')) o
            ON o.merchant_id = p.merchant_id AND o.payment_id = p.id AND o.id = p.operation_id
         WHERE p.id IS NULL OR o.id IS NULL OR o.amount_minor <> p.amount_minor OR o.currency <> p.currency
        """,
    ),
    Check(
        5,
        "every change of a payment has its log row, and the logs lead from one status to the next",
        """
        WITH steps AS (
            SELECT merchant_id, payment_id, version, from_status, to_status,
                   lag(to_status) OVER w AS previous, row_number() OVER w AS number,
                   count(*) OVER (PARTITION BY merchant_id, payment_id) AS total
              FROM payment_logs WINDOW w AS (PARTITION BY merchant_id, payment_id ORDER BY version)
        )
        SELECT coalesce(p.merchant_id, s.merchant_id) AS merchant_id, p.id, p.status, p.version,
               s.version AS step, s.from_status, s.previous
          FROM payment_requests p
          FULL JOIN steps s ON s.merchant_id = p.merchant_id AND s.payment_id = p.id
         WHERE p.id IS NULL OR s.version IS NULL OR s.version <> s.number OR s.total <> p.version
            OR s.from_status IS DISTINCT FROM s.previous OR (s.version = p.version AND s.to_status <> p.status)
        """,
    ),
    Check(
        6,
        "a merchant's sequence of events has no gap",
        """
        SELECT coalesce(s.merchant_id, e.merchant_id) AS merchant_id, s.last_seq, e.first, e.last, e.total
          FROM merchant_sequences s
          FULL JOIN (
                SELECT merchant_id, min(seq) AS first, max(seq) AS last, count(*) AS total FROM events GROUP BY merchant_id
               ) e ON e.merchant_id = s.merchant_id
         WHERE coalesce(s.last_seq, 0) <> coalesce(e.total, 0) OR e.first <> 1 OR e.last <> e.total
        """,
    ),
    Check(
        6,
        "every settled status was told as an event, once",
        """
        SELECT coalesce(l.merchant_id, e.merchant_id) AS merchant_id, coalesce(l.payment_id, e.payment_id) AS payment_id,
               type, l.total AS changes, e.total AS events
          FROM (
                SELECT merchant_id, payment_id, 'payment.' || lower(to_status) AS type, count(*) AS total
                  FROM payment_logs
                 WHERE from_status <> to_status AND to_status NOT IN ('PENDING', 'UNKNOWN')
                 GROUP BY merchant_id, payment_id, type
               ) l
          FULL JOIN (
                SELECT merchant_id, payment_id, type, count(*) AS total FROM events
                 WHERE type IN ('payment.authorized', 'payment.succeeded', 'payment.declined', 'payment.expired',
                                'payment.canceled')
                 GROUP BY merchant_id, payment_id, type
               ) e USING (merchant_id, payment_id, type)
         WHERE l.total IS DISTINCT FROM e.total
        """,
    ),
    Check(
        6,
        "every event goes to every endpoint that was there",
        """
        SELECT e.merchant_id, e.seq, w.id AS endpoint_id
          FROM events e
          JOIN webhook_endpoints w ON w.merchant_id = e.merchant_id AND w.enabled AND w.created_at < e.created_at
         WHERE NOT EXISTS (
                SELECT FROM deliveries d
                 WHERE d.merchant_id = e.merchant_id AND d.endpoint_id = w.id AND d.event_seq = e.seq)
        """,
    ),
    Check(
        7,
        "attempts and checks are bounded",
        f"""
        SELECT merchant_id, event_seq::text AS what, attempts AS times
          FROM deliveries WHERE attempts > {len(DELIVERY_DELAYS_SECONDS)}
        UNION ALL
        SELECT merchant_id, id::text, checks FROM payment_requests WHERE checks > {len(RECHECK_DELAYS_SECONDS)}
        UNION ALL
        SELECT merchant_id, id::text, checks FROM refunds WHERE checks > {len(RECHECK_DELAYS_SECONDS)}
        """,  # noqa: S608 - numbers of ours
    ),
    Check(
        8,
        "no text holds a card number",
        r"""
        WITH found AS (
            SELECT p.merchant_id, p.id, regexp_replace(m[1], '[ -]', '', 'g') AS digits
              FROM payment_requests p,
                   LATERAL regexp_matches(
                       regexp_replace(
                           concat_ws(' | ', p.order_id, p.description, p.return_url, p.idempotency_key,
                                     p.statement_descriptor, p.metadata),
                           '(?<![0-9A-Za-z])(?=[0-9-]*[A-Fa-f])([0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}'
                               || '|[0-9A-Fa-f]{20,})(?![0-9A-Za-z])',
                           '', 'g'),
                       '(?:^|[^0-9])([2-6](?:[ -]?[0-9]){11,18})(?![0-9])', 'g') AS m
        )
        SELECT merchant_id, id, length(digits) AS digits
          FROM found
         WHERE CASE left(digits, 1)
                   WHEN '2' THEN length(digits) = 16
                   WHEN '3' THEN length(digits) IN (14, 15, 16)
                   WHEN '4' THEN length(digits) IN (13, 16, 19)
                   WHEN '5' THEN length(digits) = 16
                   ELSE length(digits) IN (16, 17, 18, 19) END
           AND (SELECT sum(CASE WHEN n % 2 = 1 THEN d WHEN d * 2 > 9 THEN d * 2 - 9 ELSE d * 2 END) % 10
                  FROM (SELECT n, substr(reverse(digits), n, 1)::integer AS d
                          FROM generate_series(1, length(digits)) AS n) AS each) = 0
        """,
    ),
    Check(
        1,
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
        3,
        "the server writes to disk before it answers",
        """
        SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'
        """,
    ),
)


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
