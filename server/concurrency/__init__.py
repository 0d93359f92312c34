"""Concurrency primitives without any domain: a wakeup, a cache, background work."""
