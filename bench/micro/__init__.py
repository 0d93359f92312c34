"""Parts of Florin measured alone, beside their peers."""
