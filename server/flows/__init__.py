"""The use cases, one file a verb. Each takes its context (`server.flows.contexts`) and returns what came of it."""
