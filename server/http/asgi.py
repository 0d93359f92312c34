"""The ASGI types (asgi.readthedocs.io, version 3.0) that our server and our applications use."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import trio

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""The methods that are served and sent (RFC 9110, 9; RFC 5789)."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class BodyTooLarge(Exception):
    """The request's body is larger than the application accepts."""


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class Abort(Exception):
    """Raised by an application that wants its connection closed at once, without the rest of the response."""


async def call(app: Application, scope: Scope, receive: Receive, send: Send) -> BaseException | None:
    """Call the application and return its failure, if any. Only cancellation and Ctrl-C pass through.

    Whatever else an application raises, `SystemExit` included, ends its request and never the server.
    """
    try:
        await app(scope, receive, send)
    except (trio.Cancelled, KeyboardInterrupt):
        raise
    except BaseExceptionGroup as group:
        if group.subgroup((trio.Cancelled, KeyboardInterrupt)) is not None:
            raise
        return group
    except BaseException as error:  # noqa: BLE001, ASYNC103 - cancellation has passed above
        return error
    return None


async def read_body(receive: Receive, *, bytes_max: int) -> bytes:
    """The whole request body. Raises `BodyTooLarge` once it is too large, `ClientGone` if it will not arrive."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > bytes_max:
            raise BodyTooLarge
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def respond(
    send: Send, status: int, body: bytes, *, content_type: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send a whole response."""
    fields = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a request header by its lower-case name; several are joined by commas (RFC 9110, 5.3)."""
    values = [value for key, value in scope["headers"] if key == name]
    return b", ".join(values).decode("latin-1") if values else None
