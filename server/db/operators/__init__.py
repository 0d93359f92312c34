"""Operators, their sessions, and what they have asked for."""
