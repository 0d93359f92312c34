"""Batches and what came of their items."""
