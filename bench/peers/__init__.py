"""Peers: the same sync flow on three well-known stacks. NOTES.md says how each was made as fast as possible."""
