"""The HTTP API: merchants' requests and PSPs' webhooks. Parse, call the flow, render."""
