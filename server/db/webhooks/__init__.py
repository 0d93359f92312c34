"""Webhook endpoints, deliveries, their log and dead letters."""
