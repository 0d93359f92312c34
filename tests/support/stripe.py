"""Shared parts of the tests of Stripe's adapter."""

SECRET = "whsec_stripe_test"
