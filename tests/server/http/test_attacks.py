"""Defects of the HTTP server and client that adversarial reviews have found, one test each."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio

from server.http.asgi import Receive, Scope, Send, respond
from server.http.client.client import ClientOptions, open_client
from server.http.client.connection import ClientConnection
from server.http.client.errors import ClientError
from server.http.reaper import Reaper
from server.http.server import connection
from tests.support import websocket as sockets
from tests.support.florin import until
from tests.support.http import GET, TEXT, request, serving, talk
from tests.support.websocket import HANDSHAKE, connected

POST_HALF = request("POST / HTTP/1.1", "Host: a", "Content-Length: 10", body=b"hello")


async def test_one_that_cannot_be_expired_does_not_end_the_watch_over_all() -> None:
    ended = trio.Event()

    class Bad:
        deadline = 0.0

        def expire(self) -> None:
            raise RuntimeError("on purpose")

    class Good:
        deadline = 0.0

        def expire(self) -> None:
            ended.set()

    reaper = Reaper()
    reaper.watched |= {Bad(), Good()}
    async with trio.open_nursery() as nursery:
        await nursery.start(reaper.run)
        with trio.fail_after(5):
            await ended.wait()
        await trio.sleep(0.6)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"2"), (b"content-length", b"2")],
        [(b"content-length", b"abc")],
        [(b"content-length", b"-2")],
        [(b"transfer-encoding", b"chunked")],
        [(b"content length", b"2")],
        [(b"x:y", b"2")],
        [(b"", b"2")],
        [(b"x", b"a\0b")],
    ],
)
async def test_only_the_server_frames_a_response(headers: list[tuple[bytes, bytes]]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async with serving(app) as (_, port):
        assert (await talk(port, GET + GET)).count(b"HTTP/1.1 500 ") == 2


async def test_the_last_of_several_dates_is_sent_and_nothing_is_lost() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"hello", content_type=TEXT, headers=[(b"date", b"x"), (b"date", b"y")])

    async with serving(app) as (_, port):
        answer = await talk(port, GET + GET)
    assert answer.count(b"content-length: 5") == 2
    assert (answer.count(b"date: x"), answer.count(b"date: y")) == (0, 2)


@pytest.mark.parametrize(("status", "line"), [(299, b"HTTP/1.1 299 "), (599, b"HTTP/1.1 599 "), (103, b"HTTP/1.1 500 ")])
async def test_any_status_of_a_response_may_be_sent(status: int, line: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, status, b"ok", content_type=TEXT, headers=[(b"date", b"mine")])

    async with serving(app) as (_, port):
        answer = await talk(port, GET)
    assert answer.startswith(line)
    assert answer.lower().count(b"date:") == 1


@pytest.mark.parametrize("kind", ["nothing", "start only", "another type", "raises"])
async def test_a_request_without_an_answer_gets_500(kind: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if kind in ("start only", "another type"):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        if kind == "another type":
            await send({"type": "http.response.trailers", "headers": []})
        if kind == "raises":
            raise RuntimeError("on purpose")

    async with serving(app) as (_, port):
        assert (await talk(port, GET + b"\0garbage")).startswith(b"HTTP/1.1 500 ")
        assert (await talk(port, GET + GET)).count(b"HTTP/1.1 500 ") == 2


@pytest.mark.parametrize(
    "raised",
    [
        SystemExit(3),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("", [SystemExit()]),
        ExceptionGroup("", [ValueError()]),
    ],
)
async def test_whatever_an_application_raises_ends_only_its_request(raised: BaseException) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise raised

    async with serving(app) as (_, port):
        assert (await talk(port, GET + GET)).count(b"HTTP/1.1 500 ") == 2
    async with sockets.serving(app) as (_, port):
        assert (await talk(port, HANDSHAKE)).startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("stalls", ["the body", "the reading"])
async def test_reading_and_writing_have_deadlines_of_their_own(stalls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BODY_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(connection, name, 0.5)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_body_quietly, receive)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            with suppress(OSError):
                await send({"type": "http.response.body", "body": b"x" * 20_000_000, "more_body": True})
                await trio.sleep_forever()

    async def read_body_quietly(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(app) as (listener, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(POST_HALF)
        if stalls == "the body":
            with trio.fail_after(10), suppress(trio.BrokenResourceError):
                async for _ in stream:
                    pass
        else:
            await trio.testing.wait_all_tasks_blocked(0.1)
            await stream.send_all(b"world")
            await trio.sleep(1.5)
        assert all(one._eof for one in listener._connections)
        await stream.aclose()


async def test_nothing_follows_a_write_that_was_interrupted() -> None:
    failures: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(0.2):
            await send({"type": "http.response.body", "body": b"A" * 30_000_000, "more_body": True})
        try:
            await send({"type": "http.response.body", "body": b"END"})
        except OSError as error:
            failures.append(error)

    async with serving(app) as (_, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET + GET)
        await until(lambda: bool(failures))
        received = b""
        with suppress(trio.BrokenResourceError):
            async for part in stream:
                received += part
        await stream.aclose()
    assert b"END" not in received
    assert received.count(b"HTTP/1.1") == 1


async def test_two_tasks_that_send_take_turns() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def part(letter: bytes) -> None:
            for _ in range(5):
                await send({"type": "http.response.body", "body": letter * 700_000, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with trio.open_nursery() as nursery:
            for letter in (b"a", b"b"):
                nursery.start_soon(part, letter)
        await send({"type": "http.response.body", "body": b""})

    async with serving(app) as (_, port), open_client(ClientOptions(response_bytes_max=20_000_000)) as client:
        body = (await client.request("GET", f"http://127.0.0.1:{port}/")).body
    assert len(body) == 7_000_000
    assert all(len(set(body[at : at + 700_000])) == 1 for at in range(0, len(body), 700_000)), "no chunk holds both"


@pytest.mark.parametrize("denies", [False, True])
async def test_a_last_large_response_is_not_cut_off_by_unread_input(denies: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kind = "websocket.http.response" if denies else "http.response"
        await receive()
        await trio.sleep(0.2)
        headers = [(b"content-length", b"3000000"), (b"connection", b"close")]
        await send({"type": f"{kind}.start", "status": 401, "headers": headers})
        await send({"type": f"{kind}.body", "body": b"x" * 3_000_000})

    first = HANDSHAKE if denies else request("GET / HTTP/1.1", "Host: a", "Connection: close")
    async with sockets.serving(app) as (_, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(first)
        await trio.sleep(0.1)
        await stream.send_all(GET)
        await trio.sleep(0.3)
        received = 0
        with trio.fail_after(10):
            async for part in stream:
                received += len(part)
        await stream.aclose()
    assert received > 3_000_000


async def test_a_long_host_costs_nothing() -> None:
    long = request("GET /s HTTP/1.1", "Host: xn--" + "b" * 30_000, *HANDSHAKE.decode().split("\r\n")[2:-2])
    async with sockets.serving(sockets.echo) as (_, port):
        began = time.process_time()
        assert (await talk(port, long)).startswith(b"HTTP/1.1 400 ")
        assert time.process_time() - began < 0.1


async def test_lists_in_several_lines_are_one_list() -> None:
    handshake = HANDSHAKE.replace(b"Connection: Upgrade\r\n", b"Connection: Upgrade\r\nConnection: keep-alive\r\n")
    async with sockets.serving(sockets.echo) as (_, port), connected(port, handshake):
        pass


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        (b"http://b.example/x?y=z", b"/x y=z b.example"),
        (b"HTTPS://b.example", b"/  b.example"),
        (b"http://b.example?q", b"/ q b.example"),
        (b"/x#y", b"400"),
        (b"*", b"400"),
        (b"x", b"400"),
        (b"ftp://b/x", b"400"),
        (b"http:///x", b"400"),
    ],
)
async def test_the_forms_of_a_target(target: bytes, answer: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        host = dict(scope["headers"])[b"host"]
        await respond(send, 200, b" ".join((scope["path"].encode(), scope["query_string"], host)), content_type=TEXT)

    async with serving(app) as (_, port):
        assert answer in await talk(port, GET.replace(b" / ", b" %b " % target))


async def test_a_response_without_a_length_ends_before_the_application_does() -> None:
    leave = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all"})
        await leave.wait()

    async with serving(app) as (_, port):
        assert (await talk(port, request("GET / HTTP/1.0"))).endswith(b"all")
        leave.set()


async def test_a_connection_that_broke_before_anything_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that resets at once: the caller may go elsewhere, because nothing was sent."""
    monkeypatch.setattr(ClientConnection, "take", lambda self: True)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        async with open_client() as client:
            async with trio.open_nursery() as nursery:
                outcomes: list[str] = []
                nursery.start_soon(_outcome, client.request, f"http://127.0.0.1:{listening.getsockname()[1]}/", outcomes)
                peer, _ = await trio.to_thread.run_sync(listening.accept)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                peer.close()
            assert outcomes[0] in ("NotSent", "OutcomeUnknown")
            assert client.connections == 0


async def _outcome(call: Callable[..., Awaitable[object]], url: str, outcomes: list[str]) -> None:
    try:
        await call("POST", url, body=b"x")
    except ClientError as error:
        outcomes.append(type(error).__name__)


@pytest.mark.parametrize("begun", [b"GET / HT", GET + b"GET", b"x" * 100])
async def test_a_disconnected_client_is_noticed_after_its_unread_input(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WATCH_SECONDS", 0.1)
    told = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    async with serving(app) as (_, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET + begun)
        await stream.aclose()
        with trio.fail_after(5):
            await told.wait()
