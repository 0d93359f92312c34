"""A listener on a free port, and requests made of bytes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from server.http.asgi import Receive, Scope, Send, read_body, respond
from server.http.client.client import Client
from server.http.client.errors import NotSent
from server.http.server.listener import Listener, bind

TEXT = b"text/plain"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with method, path, query and body."""
    body = await read_body(receive, bytes_max=10_000_000)
    answer = b" ".join((scope["method"].encode(), scope["path"].encode(), scope["query_string"], body))
    await respond(send, 200, answer, content_type=TEXT)


@asynccontextmanager
async def serving(app: Callable[[Scope, Receive, Send], object] = echo) -> AsyncIterator[tuple[Listener, int]]:
    """A listener on a free port."""
    listener = Listener(app, bind("127.0.0.1", 0))  # type: ignore[arg-type]
    port = listener.port
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.run)
        yield listener, port
        nursery.cancel_scope.cancel()


async def talk(port: int, data: bytes, *, half_close: bool = True) -> bytes:
    """Send bytes and read until the server closes."""
    received = b""
    with trio.fail_after(10):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            try:
                await stream.send_all(data)
                if half_close:
                    await stream.send_eof()
                async for part in stream:
                    received += part
            except trio.BrokenResourceError:
                pass
    return received


def request(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


GET = request("GET / HTTP/1.1", "Host: a")


async def in_vain(client: Client, url: str) -> None:
    with pytest.raises(NotSent):
        await client.request("GET", url)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
