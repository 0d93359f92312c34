"""Replies that the server makes by itself, without an application. Whoever makes the listener renders them.

A request that cannot be parsed is not among them: the parser decides its status by RFC 9112.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from server.http.asgi import Send, respond


class Refusal(StrEnum):
    """OVERLOADED: there is no room, and nothing has happened. FAILED: the application raised, or did not answer. DENIED: it
    closed a websocket that it had not accepted. LATE: the body did not arrive in time, and nothing has happened.
    """

    OVERLOADED = "overloaded"
    FAILED = "internal_error"
    DENIED = "forbidden"
    LATE = "body_too_late"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole reply. `request_id` is the one in the body, and is logged with a failure."""

    status: int
    body: bytes
    content_type: bytes = b"text/plain"
    headers: Sequence[tuple[bytes, bytes]] = ()
    request_id: str | None = None


Render = Callable[[Refusal], Rendered]


def plain(refusal: Refusal) -> Rendered:
    """Render in plain words, for applications without a format of their own."""
    match refusal:
        case Refusal.OVERLOADED:
            return Rendered(503, b"try again later\n", headers=[(b"retry-after", b"1")])
        case Refusal.FAILED:
            return Rendered(500, b"internal server error\n")
        case Refusal.DENIED:
            return Rendered(403, b"forbidden\n")
        case Refusal.LATE:
            return Rendered(408, b"the body did not arrive in time\n")
        case _:
            assert_never(refusal)


async def refuse(send: Send, rendered: Rendered) -> None:
    """Send the reply. Raises OSError if the peer has left."""
    await respond(send, rendered.status, rendered.body, content_type=rendered.content_type, headers=rendered.headers)
