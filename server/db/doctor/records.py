"""Checks of records: nothing is lost or forgotten, every step has its log row and event, everything is bounded, no card data."""

from urllib.parse import unquote_plus

from core.card_numbers import contains_card_number
from core.events import EVENT_TYPE_BY_STATUS
from core.retry import DELIVERY_DELAYS_SECONDS, RECHECK_DELAYS_SECONDS
from server.db.clock_bounds import BOUNDS
from server.db.doctor.check import Check, Promise
from server.db.events.events import IS_WANTED

_TYPES_OF_STATUSES = ", ".join(f"'{name}'" for name in EVENT_TYPE_BY_STATUS.values())

_MAY_HOLD_ONE = "(^|[^0-9])[2-689]([^0-9A-Za-z]{0,3}[0-9]){12}|%[0-9A-Fa-f]{2}|[^\\x01-\\x7f]"
"""A text without this contains no card number: no group that begins like one, no percent-encoding and no other script."""

_METADATA = """
(CASE WHEN metadata IS NOT NULL
      THEN (SELECT string_agg(one.key || ' ' || one.value, ' x ') FROM json_each_text(metadata::json) one) END)
"""
"""Each name with its value, as the guard reads them."""

_TEXTS = (
    ("payment_requests", "id", ("order_id", "description", "return_url", "idempotency_key", "statement_descriptor", _METADATA)),
    ("refunds", "id", ("reason",)),
    ("idempotency_keys", "key", ("key",)),
    ("webhook_endpoints", "id", ("url", "description")),
    ("stream_cursors", "consumer", ("consumer",)),
    ("batch_items", "batch_id", ("reference",)),
)
"""The columns that hold merchants' own texts, with a column that names the row."""

RECORD_CHECKS = (
    Check(
        Promise.DURABLE_REPLY,
        "a successful reply names a stored payment",
        """
        SELECT k.merchant_id, k.key, k.reply_status
          FROM idempotency_keys k
         WHERE k.reply_status BETWEEN 200 AND 299 AND k.operation <> 'endpoint'
           AND NOT EXISTS (SELECT FROM payment_requests p WHERE p.merchant_id = k.merchant_id AND p.id = k.payment_id)
        """,
    ),
    Check(
        Promise.DURABLE_REPLY,
        "the server writes to disk before it answers",
        """
        SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'
        """,
    ),
    Check(
        Promise.UNKNOWN_NOT_DECLINED,
        "an open or unknown payment is never forgotten",
        """
        SELECT p.merchant_id, p.id, p.status, p.checks, p.due_at
          FROM payment_requests p
         WHERE (p.status IN ('PENDING', 'UNKNOWN') OR p.pending_id IS NOT NULL OR p.release_at IS NOT NULL
                OR (p.status = 'AUTHORIZED' AND p.capture_before IS NOT NULL))
           AND (p.due_at IS NULL OR p.due_at < now() - interval '1 hour'
                OR p.due_at > greatest(
                    p.expires_at, p.capture_before, p.updated_at + interval '25 hours', now() + interval '25 hours',
                    p.updated_at + make_interval(secs => p.settlement_delay_seconds) + interval '1 hour'))
           AND NOT EXISTS (SELECT FROM findings f WHERE f.merchant_id = p.merchant_id AND f.payment_id = p.id)
        """,
        of_payments=True,
    ),
    Check(
        Promise.UNKNOWN_NOT_DECLINED,
        "an unsettled refund is never forgotten",
        """
        SELECT r.merchant_id, r.payment_id, r.id, r.status, r.due_at
          FROM refunds r
         WHERE r.status IN ('PENDING', 'UNKNOWN') AND (r.due_at IS NULL OR r.due_at < now() - interval '1 hour')
           AND NOT EXISTS (SELECT FROM findings f WHERE f.merchant_id = r.merchant_id AND f.payment_id = r.payment_id)
        """,
        of_payments=True,
    ),
    Check(
        Promise.UNKNOWN_NOT_DECLINED,
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
        of_payments=True,
    ),
    Check(
        Promise.UNKNOWN_NOT_DECLINED,
        "a payment has its operation at the PSP, of its own amount",
        """
        SELECT p.merchant_id, p.id, p.operation_id, o.id AS operation, o.amount_minor
          FROM payment_requests p
          FULL JOIN (SELECT * FROM psp_operations WHERE kind IN ('intent', 'charge')) o
            ON o.merchant_id = p.merchant_id AND o.payment_id = p.id AND o.id = p.operation_id
         WHERE o.id IS NULL OR o.amount_minor <> p.amount_minor OR o.currency <> p.currency
            OR (p.id IS NULL AND (o.state <> 'FAILED' OR NOT EXISTS (
                SELECT FROM payment_requests q WHERE q.merchant_id = o.merchant_id AND q.id = o.payment_id)))
        """,
    ),
    Check(
        Promise.ONE_TRANSITION,
        "every change of a payment has its log row, and each log row starts where the previous one ended",
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
        of_payments=True,
    ),
    Check(
        Promise.EVERY_EVENT,
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
        Promise.EVERY_EVENT,
        "every settled status has exactly one event",
        f"""
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
                 WHERE type IN ({_TYPES_OF_STATUSES})
                 GROUP BY merchant_id, payment_id, type
               ) e USING (merchant_id, payment_id, type)
         WHERE l.total IS DISTINCT FROM e.total
        """,  # noqa: S608 - the catalogue's types
        of_payments=True,
    ),
    Check(
        Promise.EVERY_EVENT,
        "every settled refund has exactly one event",
        """
        SELECT r.merchant_id, r.payment_id, r.id, r.status, coalesce(t.total, 0) AS events
          FROM refunds r
          LEFT JOIN (
                SELECT merchant_id, payment_id, type, data::json ->> 'id' AS refund, count(*) AS total
                  FROM events WHERE type IN ('refund.succeeded', 'refund.failed')
                 GROUP BY merchant_id, payment_id, type, refund
               ) t ON t.merchant_id = r.merchant_id AND t.payment_id = r.payment_id AND t.type = 'refund.' || lower(r.status)
                  AND t.refund = 'ref_' || replace(r.id::text, '-', '')
         WHERE r.status IN ('SUCCEEDED', 'FAILED') AND coalesce(t.total, 0) <> 1
        """,
        of_payments=True,
    ),
    Check(
        Promise.EVERY_EVENT,
        "every event has a delivery to every endpoint that existed and selects it",
        f"""
        SELECT t.merchant_id, t.seq, e.id AS endpoint_id
          FROM events t
          JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.enabled
           AND e.updated_at + interval '5 seconds' < t.created_at
           AND {IS_WANTED.format("t.type")}
         WHERE t.type <> 'webhook_endpoint.test' AND NOT EXISTS (
                SELECT FROM deliveries d
                 WHERE d.merchant_id = t.merchant_id AND d.endpoint_id = e.id AND d.event_seq = t.seq)
        """,  # noqa: S608 - own conditions
    ),
    Check(
        Promise.EVERY_EVENT,
        "every delivery has its event and its endpoint",
        """
        SELECT d.merchant_id, d.endpoint_id, d.event_seq
          FROM deliveries d
         WHERE NOT EXISTS (SELECT FROM events t WHERE t.merchant_id = d.merchant_id AND t.seq = d.event_seq)
            OR NOT EXISTS (SELECT FROM webhook_endpoints e WHERE e.merchant_id = d.merchant_id AND e.id = d.endpoint_id)
        """,
    ),
    Check(
        Promise.EVERY_EVENT,
        "a delivery to an endpoint that answers is never forgotten",
        """
        SELECT d.merchant_id, d.endpoint_id, d.event_seq, d.due_at
          FROM deliveries d JOIN webhook_endpoints e ON e.merchant_id = d.merchant_id AND e.id = d.endpoint_id
         WHERE e.enabled AND e.failing_since IS NULL AND d.state = 'PENDING'
           AND coalesce(d.due_at, greatest(d.updated_at, e.held_until, e.lease_until)) < now() - interval '1 hour'
           AND NOT EXISTS (
                SELECT FROM deliveries o
                 WHERE o.merchant_id = d.merchant_id AND o.endpoint_id = d.endpoint_id AND o.attempts > 0
                   AND o.updated_at > now() - interval '1 hour')
        """,
    ),
    Check(
        Promise.EVERY_EVENT,
        "no consumer is ahead of its merchant's events",
        """
        SELECT c.merchant_id, c.consumer, c.acked_seq, s.last_seq
          FROM stream_cursors c LEFT JOIN merchant_sequences s ON s.merchant_id = c.merchant_id
         WHERE c.acked_seq > coalesce(s.last_seq, 0)
        """,
    ),
    Check(
        Promise.BOUNDED,
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
        Promise.BOUNDED,
        "no time lies further ahead than its rule allows",
        " UNION ALL ".join(
            f"SELECT '{one.table}.{one.column}' AS what, count(*) AS rows, max({one.column}) AS latest FROM {one.table}"  # noqa: S608 - own
            f" WHERE {one.condition} HAVING count(*) > 0"
            for one in BOUNDS
        ),
    ),
    Check(
        Promise.NO_CARD_DATA,
        "no text contains a card number",
        " UNION ALL ".join(
            f"SELECT merchant_id, id, text FROM (SELECT merchant_id, {key}::text AS id,"  # noqa: S608 - own columns
            f" concat_ws(' x ', {', '.join(texts)}) AS text FROM {table}) AS one WHERE text ~ '{_MAY_HOLD_ONE}'"
            for table, key, texts in _TEXTS
        ),
        offends=lambda row: contains_card_number(row[2]) or ("%" in row[2] and contains_card_number(unquote_plus(row[2]))),
        shown=("merchant_id", "id"),
    ),
)
