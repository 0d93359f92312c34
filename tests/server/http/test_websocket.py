"""Websockets over real sockets: another project's client (trio-websocket), and hostile ones made of bytes."""

import ssl
from contextlib import suppress

import pytest
import trio
import trio_websocket as tw
from hypothesis import given
from hypothesis import strategies as st
from wsproto import events as ws
from wsproto.connection import Connection, ConnectionType

from server.http.asgi import Receive, Scope, Send
from server.http.server.listener import Listener, bind
from server.http.tls import server_tls
from tests.support.http import GET, request, talk
from tests.support.websocket import HANDSHAKE, Recording, connected, echo, serving


async def test_other_peoples_client_is_understood() -> None:
    async with serving(echo) as (_, port):
        async with tw.open_websocket_url(f"ws://127.0.0.1:{port}/s", subprotocols=["florin.v1"]) as client:
            assert client.subprotocol == "florin.v1"
            for message in ("hello", "", "\u20ac\r\n\n", "x" * 65_536, b"bytes", b"\0" * 65_536):
                await client.send_message(message)
                assert await client.get_message() == message
            await client.ping(b"are you there")
        assert client.closed is not None
        assert client.closed.code == 1000
        assert b"200 OK" in await talk(port, GET)


async def test_where_there_are_none_an_upgrade_is_ignored() -> None:
    listener = Listener(echo, bind("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.run)
        assert (await talk(listener.port, HANDSHAKE + GET)).count(b"HTTP/1.1 200 OK") == 2
        nursery.cancel_scope.cancel()


async def test_over_tls(certificate: tuple[str, str]) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    async with (
        serving(echo, tls=server_tls(*certificate)) as (_, port),
        tw.open_websocket_url(f"wss://127.0.0.1:{port}/s", ssl_context=context) as client,
    ):
        for message in ("hello", "x" * 65_536):
            await client.send_message(message)
            assert await client.get_message() == message


async def test_compressed_where_that_is_wanted() -> None:
    from wsproto.extensions import PerMessageDeflate

    for deflate in (False, True):
        async with (
            serving(echo, websocket_deflate=deflate) as (_, port),
            tw.open_websocket_url(f"ws://127.0.0.1:{port}/s", extra_headers=[]) as client,
        ):
            await client.send_message("plain")
            assert await client.get_message() == "plain"
        offer = HANDSHAKE[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        async with serving(echo, websocket_deflate=deflate) as (_, port):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(offer)
            head = await stream.receive_some(1_000)
            assert (b"permessage-deflate" in head.lower()) is deflate
            if deflate:
                extension = PerMessageDeflate()
                extension.finalize("permessage-deflate")
                frames = Connection(ConnectionType.CLIENT, [extension])
                await stream.send_all(bytes(frames.send(ws.TextMessage("squeeze " * 100))))
                frames.receive_data(bytes(await stream.receive_some(10_000)))
                assert next(iter(frames.events())) == ws.TextMessage("squeeze " * 100)
            await stream.aclose()


async def test_the_scope_of_the_application() -> None:
    app = Recording()
    async with serving(app) as (_, port):
        async with connected(port, rest=bytes(Connection(ConnectionType.CLIENT).send(ws.TextMessage("early")))) as peer:
            await peer.send(ws.TextMessage("in "), ws.Ping(b"x"))
            await peer.send(ws.BytesMessage(b"whole"))
            await peer.send(ws.CloseConnection(3333, "enough"))
            events = await peer.events()
        await app.ended.wait()
    assert [message.get("text", message.get("bytes")) for message in app.messages] == ["early", "in ", b"whole", None]
    assert (app.code, app.messages[-1]["reason"]) == (3333, "enough")
    assert isinstance(app.failure, ConnectionResetError)
    assert [type(event) for event in events] == [ws.Pong, ws.CloseConnection]
    assert app.scope["type"] == "websocket"
    assert (app.scope["scheme"], app.scope["path"], app.scope["query_string"]) == ("ws", "/s", b"a=b")
    assert "method" not in app.scope


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Sec-WebSocket-Version: 13"], 400),
        (["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="], 426),
        (["Sec-WebSocket-Version: 8", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="], 426),
        (["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: short"], 400),
        (["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: \u00ff\u00ff"], 400),
        (["Sec-WebSocket-Version: 13", *["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="] * 2], 400),
        (["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Content-Length: 1"], 400),
        (["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Transfer-Encoding: chunked"], 400),
    ],
)
async def test_a_bad_handshake_is_refused_and_affects_no_other_connection(lines: list[str], status: int) -> None:
    async with serving(echo) as (_, port):
        head = request("GET /s HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket", *lines)
        answer = await talk(port, head + b"!")
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.count(b"HTTP/1.1") == 1
        posted = head.replace(b"GET", b"POST", 1)
        assert (await talk(port, posted)).startswith(b"HTTP/1.1 400 ")
        assert b"200 OK" in await talk(port, GET)


@pytest.mark.parametrize(
    ("stray", "code"),
    [
        (b"!", 1006),
        (b"\xff" * 10, 1002),
        (b"\x81\x05hello", 1002),  # not masked
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit
        (b"\x83\x80\0\0\0\0", 1002),  # a reserved opcode
        (b"\x80\x80\0\0\0\0", 1002),  # a continuation without a beginning
        (b"\x89\xfe\0\x7e\0\0\0\0" + b"x" * 126, 1002),  # a ping that is too long
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in parts
        (b"\x81\x82\0\0\0\0\xc3\x28", 1007),  # not UTF-8
        (b"\x88\x81\0\0\0\0x", 1002),  # a Close of one byte
        (b"\x88\x82\0\0\0\0\x03\xed", 1002),  # a Close with a code that nobody may send
        (b"\x82\xff\0\0\0\1\0\0\0\0\0\0\0\0" + b"x" * 70_000, 1009),
        (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1002),
    ],
)
async def test_stray_bytes_end_their_own_websocket_only(stray: bytes, code: int) -> None:
    app = Recording()
    async with serving(app) as (_, port):
        async with connected(port, rest=stray) as peer:
            if code == 1006:
                await peer.stream.send_eof()
            await peer.events()
        await app.ended.wait()
        assert app.code == code
        assert peer.close_code in (code, None)
        async with connected(port):
            pass


@given(st.binary(max_size=60), st.integers(0, 3))
def test_any_bytes_behind_a_handshake_are_survived(noise: bytes, messages: int) -> None:
    async def main() -> None:
        async with serving(echo) as (_, port):
            frames = Connection(ConnectionType.CLIENT)
            sent = b"".join(bytes(frames.send(ws.TextMessage("m"))) for _ in range(messages))
            async with connected(port, rest=sent + noise) as peer:
                await peer.stream.send_eof()
                events = await peer.events()
            assert sum(isinstance(event, ws.TextMessage) for event in events) >= 0
            async with connected(port) as peer:
                await peer.send(ws.CloseConnection(1000))
                await peer.events()
            assert peer.close_code == 1000

    trio.run(main)


async def test_a_message_in_endless_parts_is_bounded() -> None:
    app = Recording()
    async with serving(app) as (_, port), connected(port) as peer:
        with suppress(trio.BrokenResourceError):
            for _ in range(2_000):
                await peer.send(ws.TextMessage("x" * 50, message_finished=False))
        await peer.events()
        await app.ended.wait()
    assert app.code == 1009


async def test_refused_before_it_was_accepted() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        match scope["path"]:
            case "/close":
                await send({"type": "websocket.close"})
            case "/respond":
                await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
                await send({"type": "websocket.http.response.body", "body": b"no"})
            case "/fail":
                raise RuntimeError("on purpose")

    async with serving(app) as (_, port):
        for path, status in ((b"/close", 403), (b"/respond", 401), (b"/fail", 500), (b"/return", 500)):
            answer = await talk(port, HANDSHAKE.replace(b"/s?a=b", path))
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert b"connection: close" in answer


@pytest.mark.parametrize(("fails", "code"), [(False, 1000), (True, 1011)])
async def test_the_application_ends(fails: bool, code: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": [(b"x-y", b"z")]})
        await send({"type": "websocket.send", "text": "bye"})
        if fails:
            raise RuntimeError("on purpose")

    async with serving(app) as (_, port), connected(port) as peer:
        events = await peer.events()
    assert peer.close_code == code
    assert isinstance(events[0], ws.TextMessage)


async def test_the_application_closes_with_a_code_of_its_own() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4001, "reason": "\u20ac" * 100})
        with pytest.raises(OSError, match="4001"):
            await send({"type": "websocket.send", "text": "too late"})
        assert (await receive())["code"] == 4001

    async with serving(app) as (_, port), connected(port) as peer:
        await peer.events()
    assert peer.close_code == 4001
