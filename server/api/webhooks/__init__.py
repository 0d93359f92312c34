"""Webhook endpoints, deliveries and dead letters over HTTP."""
