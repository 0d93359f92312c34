"""`florin psp`."""
