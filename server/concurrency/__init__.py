"""Small parts of concurrency without any domain: a wakeup, a cache, background work."""
