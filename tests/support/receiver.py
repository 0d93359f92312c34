"""A merchant's webhook endpoint over a real socket: it records requests, and answers as configured."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from server.http.asgi import Receive, Scope, Send, read_body
from server.http.server.listener import Listener, bind
from tests.support.florin import until

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


@dataclass
class Delivered:
    """One request, as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """Its event."""
        event: dict[str, Any] = msgspec.json.decode(self.body)
        return event


@dataclass
class Receiver:
    """`answer` decides by the event; None hangs until the test ends."""

    port: int = 0
    got: list[Delivered] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], Answer | None] = field(default=lambda _: (204, [], b""))

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def seqs(self) -> list[int]:
        """The numbers of what came, in order."""
        return [one.event["seq"] for one in self.got]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        body = await read_body(receive, bytes_max=1_000_000)
        self.got.append(Delivered({name.decode(): value.decode() for name, value in scope["headers"]}, body))
        answer = self.answer(msgspec.json.decode(body))
        if answer is None:
            await trio.sleep_forever()
        assert answer is not None
        status, headers, content = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def until(self, count: int) -> list[Delivered]:
        """Wait for that many requests."""
        await until(lambda: len(self.got) >= count)
        return self.got


def always(status: int, *headers: tuple[bytes, bytes], body: bytes = b"") -> Callable[[dict[str, Any]], Answer]:
    """The same answer to everything."""
    return lambda _: (status, list(headers), body)


@asynccontextmanager
async def receiving(kind: type[Receiver] = Receiver) -> AsyncIterator[Receiver]:
    """A receiver that serves during the block."""
    receiver = kind()
    listener = Listener(receiver, bind("127.0.0.1", 0))
    receiver.port = listener.port
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.run)
        yield receiver
        nursery.cancel_scope.cancel()
