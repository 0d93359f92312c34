"""The documentation page at `/docs`: operations with examples, problem codes, events and types."""
