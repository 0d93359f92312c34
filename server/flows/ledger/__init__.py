"""Account statements and receipts."""
