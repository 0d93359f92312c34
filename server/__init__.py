"""The payment server: everything that does I/O."""
