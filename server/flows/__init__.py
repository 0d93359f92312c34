"""The use cases, one file a verb. Each takes what it works with as `Services` and returns what came of it."""
