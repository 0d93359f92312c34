"""`florin merchant`."""
