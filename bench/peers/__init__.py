"""What others would build: the same sync flow on three well-known stacks. NOTES.md says how each was made as fast as it is."""
