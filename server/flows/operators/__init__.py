"""Operators: sessions, and money that is moved after another one has approved it."""
