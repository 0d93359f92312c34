"""Batches as merchants see them, and the execution of one item."""
