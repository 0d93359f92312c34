"""PostgreSQL: the native trio driver, the pool, group commit, and every SQL statement beside the function that runs it.

This package knows nothing of HTTP. Rows are locked in this order, within a table by key: payment_requests, idempotency_keys,
webhook_endpoints, merchant_sequences, wallets, deliveries. No transaction locks payment_requests while it holds a later one.
"""
