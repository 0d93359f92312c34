"""Payments, refunds and idempotency keys: created and changed in groups, read one by one."""
