"""The HTTP client over real sockets: what it reads and reports, whom it may call, and what it leaves behind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from server.http.asgi import Receive, Scope, Send, read_body, respond
from server.http.client.client import Client, ClientOptions, open_client
from server.http.client.errors import BadResponse, NotSent, OutcomeUnknown
from tests.support.florin import until
from tests.support.http import OK, TEXT, serving


@asynccontextmanager
async def peers(*answers: bytes, close: bool = True) -> AsyncIterator[str]:
    """A peer that gives one fixed answer to each connection and then closes it, or falls silent."""
    rest = list(answers)

    async def peer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65_536)
            if rest:
                await stream.send_all(rest.pop(0))
            if not close:
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, peer, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_connections_are_reused_last_in_first_out() -> None:
    async with serving() as (_, port), open_client() as client:
        for number in range(3):
            response = await client.request("POST", f"http://127.0.0.1:{port}/{number}?q", body=b"x")
            assert response.body == b"POST /%d q x" % number
        assert client.connections == 1


async def test_a_dead_idle_connection_is_replaced_before_it_is_used() -> None:
    async with peers(OK, OK) as url, open_client() as client:
        for _ in range(2):
            assert (await client.request("POST", url, body=b"x")).body == b"hi"
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"hi"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: trailer\r\n\r\n", b"hi"),
        (b"HTTP/1.1 200 OK\r\n\r\nhi", b"hi"),
        (b"HTTP/1.0 200 OK\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hi"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK, b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", b""),
    ],
)
async def test_every_kind_of_body_is_read(answer: bytes, body: bytes) -> None:
    async with peers(answer) as url, open_client() as client:
        response = await client.request("GET", url)
        assert response.body == body
        assert response.header(b"link") is None


async def test_a_head_is_answered_without_a_body_and_the_next_call_gets_its_own() -> None:
    async with serving() as (_, port), open_client() as client:
        url = f"http://127.0.0.1:{port}/x"
        for _ in range(2):
            assert (await client.request("HEAD", url)).body == b""
            assert (await client.request("GET", url)).body == b"GET /x  "
        assert client.connections == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", OutcomeUnknown),
        (b"HTTP/1.1 200 OK\r\nContent-Le", OutcomeUnknown),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", OutcomeUnknown),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", OutcomeUnknown),
        (b"HTTP/1.1 100 Continue\r\n\r\n", OutcomeUnknown),
        (b"nonsense\r\n\r\n", BadResponse),
        (b"HTTP/1.1 099 X\r\nContent-Length: 4\r\n\r\nevil" + OK, BadResponse),
        (b"HTTP/1.1 103 X\r\nContent-Length: 4\r\n\r\nevil" + OK, BadResponse),
        (b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", BadResponse),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", BadResponse),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", BadResponse),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BadResponse),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", BadResponse),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!", BadResponse),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", BadResponse),
        (OK + b"HTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nz", BadResponse),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n", BadResponse),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000, BadResponse),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", BadResponse),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 60_000, BadResponse),
    ],
)
async def test_errors_say_what_is_known(answer: bytes, error: type[Exception]) -> None:
    async with peers(answer) as url, open_client() as client:
        with pytest.raises(error):
            await client.request("POST", url, body=b"x")
        assert client.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1",
        "ftp://127.0.0.1/",
        "http:///",
        "http://127.0.0.1:9/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "http://host.invalid/",
        "https://127.0.0.1:9/",
        "http://user:secret@127.0.0.1/",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/\r\nX: y",
        "http://127.0.0.1\\@example.com/",
        "http://127.0.0.1/\u00e9",
        "http://" + "a" * 300 + "/",
        "http://127.0.0.1/" + "a" * 9_000,
        "http://evil\uff20internal/",
        "http://a\u2100b.com/",
        "http://x\uff1a1/",
        "http://a\x01b/",
        "http://[127.0.0.1]/",
        "http://[face.cafe]/",
        "http://[::1%25lo]/",
    ],
)
async def test_a_call_that_cannot_be_made_was_not_sent(url: str) -> None:
    async with open_client() as client:
        with pytest.raises(NotSent):
            await client.request("GET", url)


async def test_headers_cannot_be_smuggled_out() -> None:
    async with serving() as (_, port), open_client() as client:
        for value in ("a\r\nHost: b", "a\nb", "a\rb", "a\0b", "\u20ac"):
            with pytest.raises(NotSent):
                await client.request("GET", f"http://127.0.0.1:{port}/", headers=[("x", value)])
        for name in ("a b", "x:y", "", " folded", "Host", "content-length", "Transfer-Encoding", "connection", "expect"):
            with pytest.raises(NotSent):
                await client.request("POST", f"http://127.0.0.1:{port}/", headers=[(name, "0")], body=b"x")
        with pytest.raises(NotSent):
            await client.request("GET / HTTP/1.1\r\nX:", f"http://127.0.0.1:{port}/")


async def test_deadlines_end_unanswered_calls() -> None:
    async def slowly(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, bytes_max=10)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await trio.sleep(0.05)

    async with peers(close=False) as silent, open_client(ClientOptions(header_seconds=0.3)) as client:
        for _ in range(5):
            began = trio.current_time()
            with trio.fail_after(5), pytest.raises(OutcomeUnknown, match="too long"):
                await client.request("POST", silent, body=b"x")
            assert trio.current_time() - began >= 0.3, "a deadline may be late, never early"
            assert client.connections == 0
        with trio.fail_after(5), pytest.raises(OutcomeUnknown, match="too long"):
            await client.request("POST", silent, body=b"x" * 30_000_000, total_seconds=0.3)
    async with serving(slowly) as (_, port), open_client(ClientOptions(header_seconds=0.3)) as client:
        with trio.fail_after(5), pytest.raises(OutcomeUnknown, match="too long"):
            await client.request("GET", f"http://127.0.0.1:{port}/", total_seconds=1.0)


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    async with serving() as (_, port), open_client(ClientOptions(idle_seconds=0.2)) as client:
        await client.request("GET", f"http://127.0.0.1:{port}/")
        assert client.connections == 1
        await until(lambda: client.connections == 0)


async def test_waiting_for_a_place_is_fair_and_bounded() -> None:
    served: list[str] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["path"])
        await trio.sleep(0.01)
        await respond(send, 200, b"", content_type=TEXT)

    async with serving(note) as (_, port), open_client(ClientOptions(connections_per_origin_max=1)) as client:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(client.request, "GET", f"http://127.0.0.1:{port}/{number}")
                await trio.testing.wait_all_tasks_blocked()
        assert client.connections == 1
    assert served == [f"/{number}" for number in range(20)]


class _Peer:
    """A peer whose first connection answers once and dies at the second request; its later ones answer forever."""

    def __init__(self) -> None:
        self.requests = 0
        self.connections = 0

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        is_first = self.connections == 1
        async with stream:
            answered = 0
            while await stream.receive_some(65_536):
                self.requests += 1
                if is_first and answered:
                    return
                await stream.send_all(OK)
                answered += 1


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_request_is_sent_again_only_where_that_is_allowed(idempotent: bool) -> None:
    peer = _Peer()
    async with trio.open_nursery() as nursery, open_client() as client:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, peer, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        await client.request("POST", url, body=b"x")
        if idempotent:
            assert (await client.request("POST", url, body=b"x", idempotent=True)).body == b"hi"
            assert peer.requests == 3
        else:
            with pytest.raises(OutcomeUnknown):
                await client.request("POST", url, body=b"x")
            assert peer.requests == 2
        nursery.cancel_scope.cancel()


async def test_a_repetition_that_cannot_be_sent_does_not_say_that_nothing_was() -> None:
    """The first request arrived and its answer was lost: that the second could not be sent changes nothing."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]

    async def peer() -> None:
        async with await listener.accept() as stream:
            await stream.receive_some(65_536)
            await stream.send_all(OK)
            await stream.receive_some(65_536)
            await listener.aclose()  # nobody listens any more

    async with trio.open_nursery() as nursery, open_client() as client:
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        nursery.start_soon(peer)
        await client.request("POST", url, body=b"x")
        with pytest.raises(OutcomeUnknown):
            await client.request("POST", url, body=b"charge", idempotent=True)


async def test_a_head_with_a_body_is_no_response() -> None:
    async with peers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") as url, open_client() as client:
        with pytest.raises(BadResponse):
            await client.request("HEAD", url)
        assert client.connections == 0


async def test_after_its_block_a_client_makes_no_calls() -> None:
    failures: list[Exception] = []

    async def call(client: Client, url: str) -> None:
        try:
            await client.request("GET", url)
        except (OutcomeUnknown, NotSent) as error:
            failures.append(error)

    async with peers(close=False) as url:
        async with trio.open_nursery() as nursery, open_client() as client:
            nursery.start_soon(call, client, url)  # noqa: ASYNC111 - the call outlives the client: that is tested
            await trio.testing.wait_all_tasks_blocked()
        await call(client, url)
        assert [type(error) for error in failures] == [OutcomeUnknown, NotSent]
        assert client.connections == 0


async def test_an_answer_that_comes_before_the_request_was_taken_is_heard() -> None:
    async def reject(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(10)
            await stream.send_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            await stream.send_eof()
            await trio.sleep(0.2)

    async with trio.open_nursery() as nursery, open_client() as client:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, reject, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        response = await client.request("POST", url, body=b"x" * 30_000_000)
        assert (response.status, response.body) == (413, b"no")
        assert client.connections == 0
        nursery.cancel_scope.cancel()
