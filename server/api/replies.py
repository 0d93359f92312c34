"""The replies that several handlers give: a stored one, a refused key."""

from core.errors import Conflict, Unprocessable
from core.idempotency import InFlight, Mismatch, Replay
from server.http.asgi import Send, respond

JSON = b"application/json"
OK, CREATED, ACCEPTED = 200, 201, 202


async def send_decision(send: Send, decision: Replay | Mismatch | InFlight) -> None:
    """The reply to a request whose key was used before. Raises `Unprocessable` or `Conflict`."""
    match decision:
        case Replay(reply):
            await respond(send, reply.status, reply.body, content_type=JSON, headers=[(b"idempotent-replayed", b"true")])
        case Mismatch():
            raise Unprocessable(
                "this Idempotency-Key was used with another request: use a new key", code="idempotency_key_reused"
            )
        case InFlight():
            raise Conflict("the first request with this key is being carried out", code="idempotency_key_in_flight")
