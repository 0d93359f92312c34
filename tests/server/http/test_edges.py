"""Edges of the HTTP server: TLS, unix sockets, proxies that report the client, and too many requests at once."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from server.http.asgi import Receive, Scope, Send, read_body, respond
from server.http.client.client import ClientOptions, open_client
from server.http.client.errors import NotSent
from server.http.server.listener import Listener, ListenerOptions, bind, bind_unix
from server.http.tls import server_tls
from server.settings import parse_networks
from tests.support.http import GET, echo, request, talk


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the client that the application sees."""
    await read_body(receive, bytes_max=1_000)
    client = scope["client"][0] if scope["client"] else "nobody"
    await respond(send, 200, f"{client} by {scope['scheme']}".encode(), content_type=b"text/plain")


@asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.run)
        yield
        nursery.cancel_scope.cancel()


async def test_tls_both_ways(certificate: tuple[str, str]) -> None:
    options = ListenerOptions(tls=server_tls(*certificate))
    listener = Listener(who, bind("127.0.0.1", 0), options)
    url = f"https://127.0.0.1:{listener.port}/"
    trust = ClientOptions(tls=ssl.create_default_context(cafile=certificate[0]))
    async with listening(listener), open_client(trust) as trusting, open_client() as strict:
        for _ in range(2):
            response = await trusting.request("POST", url, body=b"x" * 100)
            assert response.body == b"127.0.0.1 by https"
        with pytest.raises(NotSent, match="certificate"):
            await strict.request("GET", url)
        assert await talk(listener.port, GET) == b""
        assert (await trusting.request("GET", url)).status == 200
        assert trusting.connections == 1, "the connection is used again"


async def test_a_handshake_that_never_ends_is_ended(certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADER_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(f"server.http.server.connection.{name}", 0.2)
    listener = Listener(who, bind("127.0.0.1", 0), ListenerOptions(tls=server_tls(*certificate)))
    async with listening(listener):
        assert await talk(listener.port, b"\x16\x03\x01", half_close=False) == b""


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "florin.sock")
    dead = bind_unix(path)
    dead.close()
    living = bind_unix(path)
    with pytest.raises(OSError, match="in use"):
        bind_unix(path)
    async with listening(Listener(who, living)):
        stream = await trio.open_unix_socket(path)
        await stream.send_all(GET)
        assert b"nobody by http" in await stream.receive_some(1_000)
        await stream.aclose()


def proxy_header(client: str, *, command: int = 0x21) -> bytes:
    addresses = socket.inet_aton(client) + socket.inet_aton("10.0.0.1") + (1_234).to_bytes(2, "big") + (443).to_bytes(2, "big")
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes([command, 0x11]) + len(addresses).to_bytes(2, "big") + addresses


async def test_the_proxy_protocol_where_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http.server.listener.HEADER_SECONDS", 0.3)
    listener = Listener(who, bind("127.0.0.1", 0), ListenerOptions(proxy_protocol=True))
    async with listening(listener):
        port = listener.port
        assert b"203.0.113.7 by http" in await talk(port, proxy_header("203.0.113.7") + GET)
        assert b"127.0.0.1 by http" in await talk(port, proxy_header("203.0.113.7", command=0x20) + GET)
        for wrong in (GET, proxy_header("203.0.113.7")[:20], proxy_header("203.0.113.7", command=0x31) + GET, b"\xff" * 40):
            assert await talk(port, wrong, half_close=False) == b""
    async with listening(plain := Listener(who, bind("127.0.0.1", 0))):
        assert b"400 Bad Request" in await talk(plain.port, proxy_header("203.0.113.7") + GET)


@pytest.mark.parametrize(
    ("trusted", "headers", "seen"),
    [
        (["127.0.0.0/8"], ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"], b"203.0.113.7 by https"),
        (["127.0.0.0/8"], ["X-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.0.0.2"], b"203.0.113.7 by http"),
        (["127.0.0.0/8"], ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.7"], b"203.0.113.7 by http"),
        (["127.0.0.0/8"], ["X-Forwarded-For: 203.0.113.7:4711"], b"203.0.113.7 by http"),
        (["127.0.0.0/8"], ["X-Forwarded-For: [2001:db8::1]:443"], b"2001:db8::1 by http"),
        (["127.0.0.0/8"], ["X-Forwarded-For: [2001:db8::1], 127.0.0.2:80"], b"2001:db8::1 by http"),
        (["127.0.0.0/8"], ["X-Forwarded-For: 203.0.113.7, ::ffff:127.0.0.2"], b"203.0.113.7 by http"),
        (["127.0.0.0/8"], ["X-Forwarded-For: ::ffff:203.0.113.7"], b"203.0.113.7 by http"),
        (["::ffff:127.0.0.0/104"], ["X-Forwarded-For: 203.0.113.7"], b"203.0.113.7 by http"),
        (["127.0.0.0/8"], ["X-Forwarded-For: nonsense", "X-Forwarded-Proto: gopher"], b"127.0.0.1 by http"),
        (["10.0.0.0/8"], ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"], b"127.0.0.1 by http"),
        ([], ["X-Forwarded-For: 203.0.113.7"], b"127.0.0.1 by http"),
    ],
)
async def test_only_trusted_proxies_are_believed(trusted: list[str], headers: list[str], seen: bytes) -> None:
    listener = Listener(who, bind("127.0.0.1", 0), ListenerOptions(trusted_proxies=tuple(parse_networks(",".join(trusted)))))
    async with listening(listener):
        assert seen in await talk(listener.port, request("GET / HTTP/1.1", "Host: a", *headers))


async def test_a_proxy_that_comes_by_ipv4_to_a_listener_on_every_address_is_believed() -> None:
    options = ListenerOptions(trusted_proxies=tuple(parse_networks("127.0.0.0/8")))
    async with listening(listener := Listener(who, bind("::", 0), options)):
        for given, seen in (("203.0.113.7:4711", b"203.0.113.7 by http"), ("127.0.0.2", b"127.0.0.1 by http")):
            assert seen in await talk(listener.port, request("GET / HTTP/1.1", "Host: a", f"X-Forwarded-For: {given}"))


async def test_too_many_requests_at_once_are_turned_away_before_anything_happens() -> None:
    entered, leave = trio.Event(), trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await leave.wait()
        await respond(send, 200, b"done", content_type=b"text/plain")

    listener = Listener(slow, bind("127.0.0.1", 0), ListenerOptions(requests_in_flight_max=1))
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await talk(listener.port, GET))

    async with listening(listener), trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await entered.wait()
        refused = await talk(listener.port, request("POST / HTTP/1.1", "Host: a", "Content-Length: 3", body=b"abc"))
        assert b"503 Service Unavailable" in refused
        assert b"retry-after: 1" in refused
        leave.set()
    assert b"done" in answers[0]


async def test_more_connections_than_places_wait_their_turn() -> None:
    listener = Listener(echo, bind("127.0.0.1", 0), ListenerOptions(connections_max=2))
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await talk(listener.port, request("GET / HTTP/1.1", "Host: a", "Connection: close")))

    async with listening(listener), trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert sum(b"200 OK" in answer for answer in answers) == 10
