"""Events and their consumers."""
