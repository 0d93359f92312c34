"""Payments and refunds over HTTP."""
