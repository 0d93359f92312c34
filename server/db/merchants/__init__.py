"""Merchants, their keys and terms, and the audit log."""
