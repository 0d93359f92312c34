"""Batches, claimed and run."""
