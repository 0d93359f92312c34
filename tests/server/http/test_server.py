"""The HTTP server over real sockets: what it must accept, what it must refuse, and what a client may rely on."""

import itertools
import socket
from functools import partial

import h11
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.http.asgi import Receive, Scope, Send, read_body, respond
from server.http.server.listener import Listener, bind
from server.http.server.parser import RequestParser
from tests.support.http import GET, TEXT, request, serving, talk


async def test_keep_alive_pipelining_and_order() -> None:
    async with serving() as (_, port):
        answer = await talk(port, b"".join(request(f"GET /{n} HTTP/1.1", "Host: a") for n in range(10)))
    assert answer.count(b"HTTP/1.1 200 OK") == 10
    assert [answer.index(b"GET /%d " % n) for n in range(10)] == sorted(answer.index(b"GET /%d " % n) for n in range(10))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("GET / HTTP/1.1"), 400),
        (request("GET / HTTP/1.1", "Host: a", "Host: b"), 400),
        (request("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
        (request("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Content-Length: 2", body=b"xy"), 400),
        (request("POST / HTTP/1.1", "Host: a", "Content-Length: +1", body=b"x"), 400),
        (request("POST / HTTP/1.1", "Host: a", "Content-Length: -1", body=b"x"), 400),
        (request("POST / HTTP/1.1", "Host: a", "Content-Length: 1, 1", body=b"x"), 400),
        (request("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip"), (400, 501)),
        (request("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked, gzip"), (400, 501)),
        (request("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), (400, 501)),
        (request("POST / HTTP/1.0", "Host: a", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), (400, 501)),
        (request("GET / HTTP/1.1", "Host : a"), 400),
        (request("GET / HTTP/1.1", "Host: a", "X: a\r\n b"), 400),
        (request("GET / HTTP/1.1", "Host: a", "X: a\0b"), 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", 400),
        (request("GET / HTTP/2.0", "Host: a"), (400, 505)),
        (request("G\tT / HTTP/1.1", "Host: a"), 400),
        (request("DESCRIBE / RTSP/1.0", "Host: a"), (400, 501)),
        (request("CONNECT a:1 HTTP/1.1", "Host: a"), 501),
        (request("GET / HTTP/1.1", "Host: a b@c/../"), 400),
        (request("GET /" + "a" * 9_000 + " HTTP/1.1", "Host: a"), 414),
        (request("GET / HTTP/1.1", "Host: a", "X: " + "a" * 40_000), 431),
        (request("GET / HTTP/1.1", "Host: a", *["X: a"] * 101), 431),
        (request("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\n"), 400),
        (request("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=b"5\r\nhelloX"), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000, 431),
        (request("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=b"1;" + b"a" * 200_000), 431),
    ],
)
async def test_ambiguous_or_too_large_input_is_refused(data: bytes, status: int | tuple[int, ...]) -> None:
    async with serving() as (_, port):
        answer = await talk(port, data + GET)
    given_status = int(answer.split(b" ", 2)[1])
    assert given_status in (status if isinstance(status, tuple) else (status,))
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1 ") == 1, "nothing may be read after a refusal"


async def test_bodies_chunked_and_continued() -> None:
    async with serving() as (_, port):
        chunked = request(
            "POST /c HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n"
        )
        assert b"POST /c  abcde" in await talk(port, chunked)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(request("POST /e HTTP/1.1", "Host: a", "Content-Length: 2", "Expect: 100-continue"))
        assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 100 Continue")
        await stream.send_all(b"hi")
        assert b"POST /e  hi" in await stream.receive_some(1_000)
        await stream.aclose()
        large = b"x" * 5_000_000
        assert len(await talk(port, request("POST / HTTP/1.1", "Host: a", f"Content-Length: {len(large)}", body=large))) > len(
            large
        )


@pytest.mark.parametrize(
    ("length", "body"), [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")]
)
async def test_an_upgrade_that_is_not_taken_is_ignored(length: str, body: bytes) -> None:
    """curl --http2 sends this: its body, and the request behind it, are read as if there were no upgrade."""
    data = request("POST /u HTTP/1.1", "Host: a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", length, body=body)
    async with serving() as (_, port):
        answer = await talk(port, data + GET)
    assert b"POST /u  hello" in answer
    assert answer.count(b"HTTP/1.1 200") == 2


async def test_trailers_never_become_headers() -> None:
    async def headers(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, bytes_max=100)
        await respond(send, 200, b" ".join(name for name, _ in scope["headers"]), content_type=TEXT)

    trailers = b"0\r\nAuthorization: Bearer x\r\nHost: b\r\n\r\n"
    async with serving(headers) as (_, port):
        answer = await talk(port, request("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=trailers))
    assert answer.endswith(b"\r\n\r\nhost transfer-encoding")


async def test_head_and_http_1_0_and_connection_close() -> None:
    async with serving() as (_, port):
        head = await talk(port, request("HEAD / HTTP/1.1", "Host: a"))
        assert head.endswith(b"\r\n\r\n")
        assert b"content-length: 8" in head
        old = await talk(port, request("GET / HTTP/1.0") + GET, half_close=False)
        assert old.count(b"HTTP/1.1 200") == 1
        closed = await talk(port, request("GET / HTTP/1.1", "Host: a", "Connection: close") + GET, half_close=False)
        assert closed.count(b"HTTP/1.1 200") == 1


async def test_an_application_that_fails_or_streams() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, bytes_max=1_000)
        if scope["path"] == "/fails":
            raise RuntimeError("on purpose")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"part%d" % number, "more_body": number < 2})
        if scope["path"] == "/fails-late":
            raise RuntimeError("on purpose, late")

    async with serving(app) as (_, port):
        assert b"500 Internal Server Error" in await talk(port, request("GET /fails HTTP/1.1", "Host: a") + GET)
        streamed = await talk(port, request("GET /streams HTTP/1.1", "Host: a"))
        assert streamed.endswith(b"5\r\npart0\r\n5\r\npart1\r\n5\r\npart2\r\n0\r\n\r\n")
        assert (await talk(port, request("GET /fails-late HTTP/1.1", "Host: a"))).endswith(b"0\r\n\r\n")


async def test_an_early_reply_is_followed_by_the_next_request() -> None:
    async def reject(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 401, b"no", content_type=TEXT)

    body = b"x" * 200_000
    async with serving(reject) as (_, port):
        answer = await talk(port, request("POST / HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", body=body) + GET)
    assert answer.count(b"HTTP/1.1 401") == 2


async def test_slow_peers_are_ended_by_the_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADER_SECONDS", "BODY_SECONDS", "IDLE_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(f"server.http.server.connection.{name}", 0.2)

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"x" * 20_000_000, content_type=TEXT)

    async with serving() as (_, port):
        for data in (b"", b"GET / HT", request("POST / HTTP/1.1", "Host: a", "Content-Length: 5", body=b"x")):
            assert b"200" not in await talk(port, data, half_close=False)
    async with serving(flood) as (listener, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET)
        with trio.fail_after(5):
            await listener.drain(seconds=3)
        await stream.aclose()


async def test_a_drain_finishes_running_requests_and_no_more() -> None:
    entered, leave = trio.Event(), trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await leave.wait()
        await respond(send, 200, b"done", content_type=TEXT)

    answers: list[bytes] = []

    async def ask(port: int) -> None:
        answers.append(await talk(port, GET, half_close=False))

    listener = Listener(slow, bind("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.run)
        port = listener.port
        idle = await trio.open_tcp_stream("127.0.0.1", port)
        nursery.start_soon(ask, port)
        await entered.wait()
        nursery.start_soon(partial(listener.drain, seconds=5))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(2):
            assert await idle.receive_some(1) == b""
        with pytest.raises(OSError, match=r".*"):
            await trio.open_tcp_stream("127.0.0.1", port)
        leave.set()
        await idle.aclose()
    assert b"done" in answers[0]
    assert b"connection: close" in answers[0]


async def test_a_client_that_hangs_up_cancels_nothing() -> None:
    entered, finished = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, bytes_max=10)
        entered.set()
        await trio.sleep(0.1)
        finished.set()
        await respond(send, 200, b"", content_type=TEXT)

    async with serving(app) as (_, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET)
        await entered.wait()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        with trio.fail_after(2):
            await finished.wait()


_STREAM = (
    request("GET /a?b=c HTTP/1.1", "Host: a")
    + request("POST /p HTTP/1.1", "Host: a", "Content-Length: 5", body=b"hello")
    + request("POST /c HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n")
    + request("GET /z HTTP/1.1", "Host: a", "X-Y: z")
)


def _parsed(parts: list[bytes]) -> list[tuple[str, bytes, bytes, list[tuple[bytes, bytes]]]]:
    parser = RequestParser()
    for part in parts:
        parser.feed(part)
    return [(one.method, one.target, b"".join(one.body), one.headers) for one in parser.requests]


@given(st.lists(st.integers(0, len(_STREAM)), max_size=12))
def test_a_stream_parses_the_same_wherever_it_is_split(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(_STREAM)]
    assert _parsed([_STREAM[a:b] for a, b in itertools.pairwise(edges)]) == _parsed([_STREAM])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300), st.integers(0, 3))
def test_any_bytes_are_parsed_or_refused(noise: bytes, where: int) -> None:
    parser = RequestParser()
    parser.feed(_STREAM[: where * 40] + noise)
    assert parser.failure is None or 400 <= parser.failure.status < 600


async def test_replies_are_read_alike_by_a_second_parser() -> None:
    async with serving() as (_, port):
        raw = await talk(port, _STREAM)
    oracle = h11.Connection(h11.CLIENT)
    bodies = []
    for number in range(4):
        oracle.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        oracle.send(h11.EndOfMessage())
        if number == 0:
            oracle.receive_data(raw)
        body = b""
        while True:
            event = oracle.next_event()
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        bodies.append(body)
        if number < 3:
            oracle.start_next_cycle()
    assert bodies == [b"GET /a b=c ", b"POST /p  hello", b"POST /c  abc", b"GET /z  "]


@pytest.mark.parametrize("said", [b"5", b"1"])
async def test_a_body_that_is_not_as_long_as_was_said_is_never_taken_for_the_next_response(said: bytes) -> None:
    async def wrong(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", said)]})
        if scope["path"] == "/streams":
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"bc"})

    async with serving(wrong) as (_, port):
        answer = await talk(port, GET + GET)
        assert answer.count(b"HTTP/1.1 500 ") == 2
        assert b"bc" not in answer
        streamed = await talk(port, request("GET /streams HTTP/1.1", "Host: a") + GET, half_close=False)
        assert streamed.count(b"HTTP/1.1 ") == 1, "the connection ends where the body should"
        assert streamed.endswith(b"\r\n\r\na")


@pytest.mark.parametrize("bad", [(b"x", b"a\r\nset-cookie: b"), (b"x", b"a\nb"), (b"x\r\ny", b"a"), (b"x", b"a\rb")])
async def test_an_application_cannot_inject_headers(bad: tuple[bytes, bytes]) -> None:
    async def inject(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"ok", content_type=TEXT, headers=[bad])

    async with serving(inject) as (_, port):
        assert (await talk(port, GET)).startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("ending", ["the client goes", "the response ends", "another request comes"])
async def test_an_application_may_watch_for_the_end(ending: str) -> None:
    told: list[str] = []
    watching = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, bytes_max=100)

        async def watch() -> None:
            watching.set()
            told.append((await receive())["type"])
            if ending == "the client goes":
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked(0.05)
            if ending == "the client goes":
                await trio.sleep_forever()
            await respond(send, 200, b"done", content_type=TEXT)

    async with serving(app) as (_, port):
        if ending == "the client goes":
            assert await talk(port, request("POST / HTTP/1.1", "Host: a", "Content-Length: 2", body=b"hi")) == b""
        elif ending == "the response ends":
            assert b"done" in await talk(port, request("GET / HTTP/1.1", "Host: a", "Connection: close"), half_close=False)
        else:
            assert (await talk(port, GET + GET, half_close=True)).count(b"done") == 2
    assert set(told) == {"http.disconnect"}
