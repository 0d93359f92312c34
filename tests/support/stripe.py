"""What the tests of Stripe's adapter share."""

SECRET = "whsec_stripe_test"
