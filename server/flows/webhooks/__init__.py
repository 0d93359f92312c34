"""Webhook endpoints, and one attempt to deliver to them."""
