"""Payments: created, charged, captured, canceled, refunded, settled by what the PSP says."""
