"""Websockets with slow, silent and stalled peers."""

from contextlib import suppress
from functools import partial

import pytest
import trio
import trio_websocket as tw
from wsproto import events as ws

from server.http.asgi import Receive, Scope, Send
from server.http.server.listener import Listener, ListenerOptions, bind
from server.http.websocket import outbox, websocket
from server.http.websocket.frame import FRAME_EXTENSION, Frame, send_frame
from tests.support.florin import until
from tests.support.websocket import Recording, connected, serving


async def test_pings_and_a_peer_that_answers_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.3)
    monkeypatch.setattr(websocket, "PONG_SECONDS", 0.6)
    app = Recording()
    async with serving(app) as (_, port):
        async with tw.open_websocket_url(f"ws://127.0.0.1:{port}/s"):
            await trio.sleep(2)
            assert not app.ended.is_set(), "its pings are answered"
        app = Recording()
    async with serving(app) as (_, port), connected(port) as peer:
        events = await peer.events()
        assert any(isinstance(event, ws.Ping) for event in events), f"not asked: {events}, {app.messages}, {app.failure}"
        await app.ended.wait()
    assert app.code == 1006


async def test_a_silent_peer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.2)
    monkeypatch.setattr(websocket, "PONG_SECONDS", 0.2)
    app = Recording()
    async with serving(app) as (_, port), connected(port):
        await app.ended.wait()
    assert app.code == 1006


async def test_an_unanswered_close_ends_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.2)
    returned = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        returned.set()

    async with serving(app) as (listener, port), connected(port):
        await returned.wait()
        await until(lambda: not listener.connections)


async def test_one_frame_for_many_and_a_stalled_reader_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets: list[tuple[Scope, Send]] = []
    gone = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        sockets.append((scope, send))
        message = await receive()
        if message["code"] == 1013:
            gone.set()

    frame = Frame.of("x" * 10_000)
    async with serving(app) as (_, port), connected(port) as stalled, connected(port) as reader:
        await until(lambda: len(sockets) == 2)
        assert FRAME_EXTENSION in sockets[0][0]["extensions"]
        received = 0
        while not gone.is_set():
            for scope, send in sockets:
                with suppress(OSError):
                    await send_frame(scope, send, frame)
            while received < len(frame.encoded):
                received += len(await reader.stream.receive_some(65_536))
            received -= len(frame.encoded)
            await trio.lowlevel.checkpoint()
        # What it was behind with is dropped, but not in the middle of a frame: it learns that it has to reconnect.
        await stalled.events()
        assert stalled.close_code == 1013


async def test_a_reader_that_takes_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WRITE_SECONDS", 0.2)
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "bytes": b"x" * 100_000})
        except OSError:
            ended.set()

    async with serving(app) as (_, port), connected(port):
        await ended.wait()


async def test_a_plain_send_waits_for_a_slow_reader() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(200):
            await send({"type": "websocket.send", "bytes": b"x" * 100_000})

    async with serving(app) as (_, port), connected(port) as peer:
        await trio.testing.wait_all_tasks_blocked()
        events = await peer.events()
    assert sum(len(event.data) for event in events if isinstance(event, ws.BytesMessage)) == 20_000_000
    assert peer.close_code == 1000


async def test_an_application_that_does_not_read_stops_its_peer_and_is_not_blamed_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.2)
    monkeypatch.setattr(websocket, "PONG_SECONDS", 0.2)
    read = trio.Event()
    count = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal count
        await receive()
        await send({"type": "websocket.accept"})
        await read.wait()
        while (await receive())["type"] == "websocket.receive":
            count += 1

    async with serving(app) as (_, port), tw.open_websocket_url(f"ws://127.0.0.1:{port}/s") as client:
        for _ in range(100):
            await client.send_message("x")
        await trio.sleep(1.2)
        read.set()
        await until(lambda: count == 100)


async def test_a_drain_says_reconnect_and_ends() -> None:
    app = Recording()
    listener = Listener(app, bind("127.0.0.1", 0), ListenerOptions(websockets=True))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.run)
            async with connected(listener.port) as peer, connected(listener.port):  # the second one never answers
                await app.accepted.wait()
                nursery.start_soon(partial(listener.drain, seconds=0.5))
                await peer.events()
                await app.ended.wait()
    assert peer.close_code == 1012
    assert app.code == 1012


async def test_a_socket_that_vanishes_is_noticed() -> None:
    app = Recording()
    async with serving(app) as (_, port):
        async with connected(port) as peer:
            await app.accepted.wait()
            peer.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await app.ended.wait()
    assert app.code == 1006
