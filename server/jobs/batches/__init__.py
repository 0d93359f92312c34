"""Batches, claimed and carried out."""
