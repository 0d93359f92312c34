"""Batches as merchants see them, and one item of one."""
