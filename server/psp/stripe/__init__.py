"""Stripe's adapter: API, objects, events and accounts."""
