"""The ASGI server: bytes to requests to an application, one task per connection."""
