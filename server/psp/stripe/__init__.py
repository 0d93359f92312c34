"""Stripe's adapter: its API, its objects, its events, and an account there."""
