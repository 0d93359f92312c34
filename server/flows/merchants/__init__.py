"""Merchants' API keys."""
