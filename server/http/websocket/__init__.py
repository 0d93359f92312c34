"""Websockets on the server's connections (RFC 6455)."""
