"""The same applications on hypercorn: also over HTTP/2, and with its traps contained."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import pytest
import trio
from wsproto import events as ws

from server.api.app import Api
from server.http import hypercorn
from server.http.asgi import Application, Receive, Scope, Send, respond
from server.http.server.lifespan import StartupFailed
from server.http.server.listener import Listener, ListenerOptions, bind
from server.http.websocket.frame import Frame, send_frame
from tests.support.florin import Florin, eventually, order
from tests.support.http import GET, request, talk
from tests.support.websocket import HANDSHAKE, connected, echo


@asynccontextmanager
async def on_hypercorn(app: Application, **options: Any) -> AsyncIterator[int]:
    listening = bind("127.0.0.1", 0)
    port: int = listening.getsockname()[1]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(hypercorn.serve, app, listening, **options))
            yield port
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def on_our_own(app: Application) -> AsyncIterator[int]:
    listener = Listener(app, bind("127.0.0.1", 0), ListenerOptions(websockets=True, lifespan=True))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.run)
            yield listener.port
            nursery.cancel_scope.cancel()


LAST = request("GET / HTTP/1.1", "Host: a", "Connection: close")
SERVERS = pytest.mark.parametrize("server", [on_our_own, on_hypercorn])


@pytest.mark.parametrize("is_secure", [False, True])
async def test_the_payment_api_over_http_2(florin: Florin, certificate: tuple[str, str], is_secure: bool) -> None:
    tls, verify = None, ssl.create_default_context(cafile=certificate[0])
    if is_secure:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*certificate)
        tls.set_alpn_protocols(["h2", "http/1.1"])
    async with (
        on_hypercorn(Api(florin.contexts), tls=tls) as port,
        httpx2.AsyncClient(http1=is_secure, http2=True, verify=verify, trust_env=False, timeout=20) as http,
    ):
        url = f"http{'s' if is_secure else ''}://127.0.0.1:{port}"
        headers = {**florin.headers, "idempotency-key": "over-http-2"}
        first = await http.post(f"{url}/v1/payments", headers=headers, json=order())
        assert (first.http_version, first.status_code) == ("HTTP/2", 201)
        again = await http.post(f"{url}/v1/payments", headers=headers, json=order())
        assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
        assert (await http.post(f"{url}/v1/payments", headers=florin.headers, json=order())).status_code == 400
        assert (await http.post(f"{url}/v1/payments", json=order())).status_code == 401
        assert (await http.head(f"{url}/healthz")).status_code == 200
        async with trio.open_nursery() as nursery:
            for number in range(20):
                keyed = {**florin.headers, "idempotency-key": f"stream-{number}"}
                nursery.start_soon(partial(http.post, f"{url}/v1/payments", headers=keyed, json=order()))
    await florin.require_promises()


@SERVERS
async def test_websockets_and_frames_alike(server: Any) -> None:
    frame = Frame.of("one for all")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        await send_frame(scope, send, frame)
        message = await receive()
        await send({"type": "websocket.send", "text": message["text"]})
        await send({"type": "websocket.close", "code": 4001})

    async with server(app) as port, connected(port) as peer:
        await peer.send(ws.TextMessage("hello"))
        events = await peer.events()
    assert [event.data for event in events if isinstance(event, ws.TextMessage)] == ["one for all", "hello"]
    assert peer.close_code == 4001


class Living:
    """An application with a lifespan."""

    def __init__(self, *, failing: str = "") -> None:
        self.told: list[str] = []
        self.failing = failing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, 200, scope["state"]["word"].encode(), content_type=b"text/plain")
            return
        scope["state"]["word"] = "from the start"
        self.told.append((await receive())["type"])
        if self.failing:
            await send({"type": "lifespan.startup.failed", "message": self.failing})
            return
        await send({"type": "lifespan.startup.complete"})
        self.told.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})


@SERVERS
async def test_the_lifespan(server: Any) -> None:
    app = Living()
    async with server(app) as port:
        assert b"from the start" in await talk(port, GET)
        assert app.told == ["lifespan.startup"]
    assert app.told == ["lifespan.startup", "lifespan.shutdown"]


@SERVERS
async def test_an_application_that_cannot_start_is_not_served(server: Any) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(StartupFailed, match="no database"), flatten_subgroups=True):
        async with server(Living(failing="no database")):
            pytest.fail("it was served")


@SERVERS
async def test_an_application_without_a_lifespan_is_served(server: Any) -> None:
    async with server(echo) as port:
        assert b"200" in await talk(port, GET)


@pytest.mark.parametrize(
    "packet",
    [
        HANDSHAKE + b"!",
        HANDSHAKE + b"\xff" * 50,
        HANDSHAKE.replace(b"Version: 13", b"Version: 1") + b"!",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"\0" * 200,
        request("GET / HTTP/1.1", "Host: a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: !"),
    ],
)
async def test_one_packet_does_not_end_the_process(packet: bytes) -> None:
    """hypercorn's own trio worker dies of the first of these."""
    async with on_hypercorn(echo) as port:
        for _ in range(3):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(packet)
            with trio.move_on_after(0.2):
                await stream.receive_some(1_000)
            await stream.aclose()
        assert b"200" in await talk(port, LAST, half_close=False)


async def test_a_client_that_never_reads_does_not_hold_up_the_end() -> None:
    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"x" * 20_000_000, content_type=b"text/plain")

    stop, ended = trio.Event(), trio.Event()
    listening = bind("127.0.0.1", 0)
    port: int = listening.getsockname()[1]

    async def run() -> None:
        await hypercorn.serve(flood, listening, stop=stop, drain_seconds=0.2)
        ended.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(GET)
            await stream.receive_some(1)
            await trio.testing.wait_all_tasks_blocked(0.1)
            stop.set()
            await ended.wait()
            await stream.aclose()


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercorn, "CONNECTIONS_MAX", 2)
    async with on_hypercorn(echo) as port:
        held = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        assert await talk(port, LAST, half_close=False) == b""
        await held[0].send_all(LAST)
        assert (await held[0].receive_some(100)).startswith(b"HTTP/1.1 200")

        async def is_served() -> bool:
            return b"200" in await talk(port, LAST, half_close=False)

        await eventually(is_served)
        for one in held:
            await one.aclose()
