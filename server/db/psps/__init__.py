"""PSP accounts, what workers share about them, and their events."""
