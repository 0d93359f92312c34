"""Ledger entries, wallets, payouts, account statements and the hash chain."""
