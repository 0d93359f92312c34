"""Replies that several handlers send, a stored one or a conflict of keys, and their headers."""

from collections.abc import Awaitable, Sequence

import msgspec

from core.errors import Conflict, Unprocessable
from core.idempotency import InFlight, Mismatch, Replay
from server.http.asgi import Message, Send, respond

JSON = b"application/json"
OK, CREATED, ACCEPTED = 200, 201, 202


class _Made(msgspec.Struct):
    id: str


_made = msgspec.json.Decoder(_Made)


def location(path: str) -> tuple[bytes, bytes]:
    """The Location header (RFC 9110, 10.2.2) of what a request has created."""
    return (b"location", path.encode())


def locations(at: str | None, body: bytes) -> list[tuple[bytes, bytes]]:
    """The Location header of the created object in a body, below a path; none without a path."""
    return [location(f"{at}/{_made.decode(body).id}")] if at is not None else []


REPLAYED = (b"idempotent-replayed", b"true")
"""The header that tells a repeated reply from the first."""


def replayed(was_replayed: bool) -> list[tuple[bytes, bytes]]:  # noqa: FBT001 - the only argument
    """`REPLAYED`, if the request was carried out before."""
    return [REPLAYED] if was_replayed else []


def with_headers(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> Send:
    """The `send` that adds headers to the response."""

    def adding(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        return send(message)

    return adding


async def send_decision(send: Send, decision: Replay | Mismatch | InFlight, *, at: str | None = None) -> None:
    """Send the reply to a request whose key was used before; `at` is the path below which it has created something.

    Raises `Unprocessable` or `Conflict`.
    """
    match decision:
        case Replay(reply):
            headers = [*locations(at, reply.body), REPLAYED]
            await respond(send, reply.status, reply.body, content_type=JSON, headers=headers)
        case Mismatch():
            raise Unprocessable(
                "this Idempotency-Key was used for a different request: use a new key", code="idempotency_key_reused"
            )
        case InFlight():
            raise Conflict("the first request with this key is still being processed", code="idempotency_key_in_flight")
