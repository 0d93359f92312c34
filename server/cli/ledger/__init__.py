"""`florin payout`, `florin receipt` and `florin wallet`."""
