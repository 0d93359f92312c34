"""`florin batch`."""
