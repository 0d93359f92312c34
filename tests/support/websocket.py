"""Websocket servers on a free port, and clients made of bytes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from wsproto import events as ws
from wsproto.connection import Connection, ConnectionType

from server.http.asgi import Receive, Scope, Send
from server.http.server.listener import Listener, ListenerOptions, bind
from tests.support.http import request

HANDSHAKE = request(
    "GET /s?a=b HTTP/1.1",
    "Host: a",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends back every message until it is told that this is over."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})
        return
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class Recording:
    """An application that accepts, and records what it receives until the end."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.send: Send | None = None
        self.scope: Scope = {}
        self.accepted, self.ended = trio.Event(), trio.Event()
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.send = scope, send
        await receive()
        await send({"type": "websocket.accept"})
        self.accepted.set()
        while not self.messages or self.messages[-1]["type"] == "websocket.receive":
            self.messages.append(await receive())
        try:
            await send({"type": "websocket.send", "text": "too late"})
        except OSError as error:
            self.failure = error
        self.ended.set()

    @property
    def code(self) -> int:
        return int(self.messages[-1]["code"])


Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@asynccontextmanager
async def serving(app: Application, **options: Any) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener(app, bind("127.0.0.1", 0), ListenerOptions(websockets=True, **options))
    port = listener.port
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.run)
            yield listener, port
            nursery.cancel_scope.cancel()


class Peer:
    """A client made of bytes, with wsproto's frames."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.frames = Connection(ConnectionType.CLIENT)
        self.close_code: int | None = None

    async def send(self, *events: ws.Event) -> None:
        await self.stream.send_all(b"".join(bytes(self.frames.send(event)) for event in events))

    async def events(self) -> list[ws.Event]:
        """All events until the server closes; its Close is answered."""
        found: list[ws.Event] = []
        with suppress(trio.BrokenResourceError):
            async for data in self.stream:
                self.frames.receive_data(bytes(data))
                for event in self.frames.events():
                    found.append(event)
                    if isinstance(event, ws.CloseConnection):
                        self.close_code = int(event.code or 0)
                        with suppress(Exception):
                            await self.send(event.response())
        return found


@asynccontextmanager
async def connected(port: int, handshake: bytes = HANDSHAKE, rest: bytes = b"") -> AsyncIterator[Peer]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(handshake + rest)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"icZ/zY7Ufs+MOdnkZHVmmxPXBiI=" not in head
        yield Peer(stream)
