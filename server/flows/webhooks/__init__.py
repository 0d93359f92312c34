"""Webhook endpoints, and one attempt at a delivery."""
