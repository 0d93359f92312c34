"""The HTTP/1.1 client: pooled connections, checked addresses, errors that say what is known."""
