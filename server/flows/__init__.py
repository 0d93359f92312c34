"""The use cases, one file per verb. Each takes its context (`server.flows.contexts`) and returns the result."""
