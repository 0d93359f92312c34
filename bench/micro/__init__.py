"""Parts measured by themselves, beside their peers."""
