"""Operators' work on payments: findings, and outcomes that a PSP has not told."""
