"""API keys of the merchant that calls."""
