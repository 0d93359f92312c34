"""The blocking client. Its transport is written by hand; `generate_blocking.py` makes the rest from `florin_client._async`."""
