"""Wallets, account statements and receipts over HTTP."""
