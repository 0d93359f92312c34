"""Payments: created, charged, captured, canceled, refunded, and settled by what the PSP reports."""
