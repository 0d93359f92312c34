"""Batches and the results of their items."""
