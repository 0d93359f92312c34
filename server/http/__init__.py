"""An ASGI server and an HTTP/1.1 client directly on trio sockets, with llhttp as the parser.

It is fast because each connection has one task in which the application is awaited, with no task, queue or cancel scope per
request; sockets are tried before they are waited for; and one reaper watches the deadlines of all connections. It is safe because
everything is bounded and ambiguous input is refused.
"""
