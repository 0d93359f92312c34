"""The coroutine wire: an ASGI server and an HTTP/1.1 client written directly on trio sockets, with llhttp doing the parsing.

What makes it fast: one task per connection in which the application is awaited, no task, queue or cancel scope per request;
sockets are tried before they are waited for; one reaper watches the deadlines of all connections. What makes it safe:
everything is bounded, and what is ambiguous is refused.
"""
