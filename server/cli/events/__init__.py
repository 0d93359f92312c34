"""`florin listen` and `florin trigger`."""
