"""Payments, refunds and idempotency keys: created and changed in groups, read one at a time."""
