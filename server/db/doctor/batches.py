"""The promises about batches."""

from server.db.doctor.check import Check, Promise

BATCH_CHECKS = (
    Check(
        Promise.ONE_EFFECT,
        "an item of a batch has charged at most once",
        """
        SELECT p.merchant_id, k.item, count(*) AS charges
          FROM payment_requests p
         CROSS JOIN LATERAL (SELECT substring(p.idempotency_key FROM '^[^:]*:[0-9]+') AS item) k
         WHERE p.idempotency_key LIKE '§bat%' AND p.status IN ('SUCCEEDED', 'AUTHORIZED', 'UNKNOWN')
         GROUP BY p.merchant_id, k.item HAVING count(*) > 1
        """,
    ),
    Check(
        Promise.DURABLE_REPLY,
        "an item that succeeded has its payment or its refund",
        """
        SELECT i.merchant_id, i.batch_id, i.number, i.type, i.payment_id, i.refund_id
          FROM batch_items i
          LEFT JOIN payment_requests p ON p.merchant_id = i.merchant_id AND p.id = i.payment_id
          LEFT JOIN refunds r ON r.merchant_id = i.merchant_id AND r.id = i.refund_id
         WHERE i.status = 'SUCCEEDED'
           AND CASE WHEN i.type = 'refund' THEN r.id IS NULL
                    ELSE p.id IS NULL OR p.status IN ('PENDING', 'DECLINED', 'UNKNOWN') END
        """,
    ),
    Check(
        Promise.DURABLE_REPLY,
        "a completed batch has a result for each of its items, and no batch has more results than items",
        """
        SELECT b.merchant_id, b.id, b.status, b.count, coalesce(i.results, 0) AS results
          FROM batches b
          LEFT JOIN (SELECT merchant_id, batch_id, count(*) AS results FROM batch_items GROUP BY merchant_id, batch_id) i
            ON i.merchant_id = b.merchant_id AND i.batch_id = b.id
         WHERE coalesce(i.results, 0) > b.count OR (b.status = 'COMPLETED' AND coalesce(i.results, 0) <> b.count)
        """,
    ),
    Check(
        Promise.BOUNDED,
        "a batch ends soon after its deadline",
        """
        SELECT merchant_id, id, deadline_at, lease_until FROM batches
         WHERE status = 'RUNNING' AND deadline_at < now() - interval '10 minutes'
        """,
    ),
)
