"""Replies that several handlers send: a stored one, a conflict of keys."""

from core.errors import Conflict, Unprocessable
from core.idempotency import InFlight, Mismatch, Replay
from server.http.asgi import Send, respond

JSON = b"application/json"
OK, CREATED, ACCEPTED = 200, 201, 202


async def send_decision(send: Send, decision: Replay | Mismatch | InFlight) -> None:
    """Send the reply to a request whose key was used before. Raises `Unprocessable` or `Conflict`."""
    match decision:
        case Replay(reply):
            await respond(send, reply.status, reply.body, content_type=JSON, headers=[(b"idempotent-replayed", b"true")])
        case Mismatch():
            raise Unprocessable(
                "this Idempotency-Key was used for a different request: use a new key", code="idempotency_key_reused"
            )
        case InFlight():
            raise Conflict("the first request with this key is still being processed", code="idempotency_key_in_flight")
