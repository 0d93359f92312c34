"""PSP accounts, the state that workers share about them, and their events."""
