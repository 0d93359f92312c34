"""Defects that attackers with fresh eyes found in websockets and behind TLS, one test each."""

import socket
import ssl
import threading
from contextlib import suppress

import pytest
import trio
from wsproto import events as ws
from wsproto.connection import Connection, ConnectionType
from wsproto.extensions import PerMessageDeflate

from server.http.asgi import Receive, Scope, Send, respond
from server.http.client.client import ClientOptions, open_client
from server.http.client.errors import OutcomeUnknown
from server.http.server import connection
from server.http.tls import TlsTransport, server_tls
from server.http.websocket import outbox, websocket
from server.http.websocket.frame import Frame, send_frame
from tests.support import websocket as sockets
from tests.support.florin import until
from tests.support.http import GET, TEXT, talk
from tests.support.websocket import HANDSHAKE, connected


async def test_a_half_closed_websocket_with_unsent_data_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "WRITE_SECONDS", 30.0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with suppress(OSError):
            while True:
                await send({"type": "websocket.send", "bytes": b"x" * 100_000})

    async with sockets.serving(app) as (listener, port), connected(port) as peer:
        await trio.testing.wait_all_tasks_blocked(0.1)
        await peer.stream.send_eof()
        await until(lambda: not listener.connections)


async def test_after_a_denial_a_websocket_has_ended() -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})
        told.append((await receive())["type"])

    async with sockets.serving(app) as (_, port):
        assert (await talk(port, HANDSHAKE)).startswith(b"HTTP/1.1 403 ")
    assert told == ["websocket.disconnect"]


async def test_a_client_that_leaves_before_it_was_accepted_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "ACCEPT_SECONDS", 0.2)
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        told.append((await receive())["type"])

    async with sockets.serving(app) as (listener, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(HANDSHAKE)
        await stream.aclose()
        await until(lambda: told == ["websocket.disconnect"] and not listener.connections)


@pytest.mark.parametrize(
    ("code", "reason"), [(99_999, ""), ("1000", ""), (5, ""), (1005, ""), (1006, ""), (1000, 5), (2_999, "")]
)
async def test_a_code_that_cannot_be_sent_is_the_applications_mistake(code: object, reason: object) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": code, "reason": reason})

    async with sockets.serving(app) as (_, port), connected(port) as peer:
        await peer.events()
    assert peer.close_code == 1011


async def test_a_burst_of_frames_reaches_a_healthy_reader_over_tls(certificate: tuple[str, str]) -> None:
    """150 frames at once: more than a slow consumer may be behind with, but this one reads."""
    frame = Frame.of("x" * 10_000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(150):
            await send_frame(scope, send, frame)

    trust = ssl.create_default_context(cafile=certificate[0])
    async with sockets.serving(app, tls=server_tls(*certificate)) as (_, port):
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=trust, https_compatible=True)
        await stream.send_all(HANDSHAKE)
        received = b""
        frames = Connection(ConnectionType.CLIENT)
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some()
        frames.receive_data(received.partition(b"\r\n\r\n")[2])
        messages = 0
        with trio.fail_after(10):
            while messages < 150:
                messages += sum(isinstance(one, ws.Message) and one.message_finished for one in frames.events())
                if messages < 150:
                    frames.receive_data(bytes(await stream.receive_some()))
        await trio.aclose_forcefully(stream)


async def test_tls_sends_close_notify_at_the_end(certificate: tuple[str, str]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"whole", content_type=TEXT, headers=[(b"connection", b"close")])

    trust = ssl.create_default_context(cafile=certificate[0])
    async with sockets.serving(app, tls=server_tls(*certificate)) as (_, port):
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=trust, https_compatible=False)
        await stream.send_all(GET)
        received = b""
        async for part in stream:  # would raise without close_notify
            received += part
        await stream.aclose()
    assert received.endswith(b"whole")


async def test_a_tls_handshake_has_the_time_of_a_header(certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    async with sockets.serving(sockets.echo, tls=server_tls(*certificate)) as (_, port):
        began = trio.current_time()
        assert await talk(port, b"", half_close=False) == b""
        assert trio.current_time() - began < 3


async def test_a_ping_between_the_parts_of_a_compressed_message() -> None:
    extension = PerMessageDeflate()
    extension.finalize("permessage-deflate")
    frames = Connection(ConnectionType.CLIENT, [extension])
    parts = [ws.TextMessage("squeeze " * 50, message_finished=False), ws.Ping(b"p"), ws.TextMessage("end")]
    sent = b"".join(bytes(frames.send(part)) for part in parts)
    offer = HANDSHAKE[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate%b\r\n\r\n"
    app = sockets.Recording()
    async with sockets.serving(app, websocket_deflate=True) as (_, port):
        async with connected(port, offer % b"", rest=sent) as peer:
            await until(lambda: bool(app.messages))
            await peer.send(ws.CloseConnection(1000))
        assert app.messages[0]["text"] == "squeeze " * 50 + "end"
    for parameter in (b"; client_max_window_bits=abc", b'; client_max_window_bits="10"'):
        async with sockets.serving(sockets.echo, websocket_deflate=True) as (_, port), connected(port, offer % parameter) as peer:
            await peer.send(ws.TextMessage("plain"))
            peer.frames.receive_data(bytes(await peer.stream.receive_some()))
            assert list(peer.frames.events()) == [ws.TextMessage("plain")], "what cannot be read is declined"


async def _transports(certificate: tuple[str, str]) -> tuple[TlsTransport, TlsTransport]:
    """Two ends of a connection with small buffers, after the handshake."""
    ends = socket.socketpair()
    for one in ends:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    ours = TlsTransport(ends[0], server_tls(*certificate))
    trust = ssl.create_default_context(cafile=certificate[0])
    theirs: list[TlsTransport] = []

    async def connect() -> None:
        theirs.append(await TlsTransport.connect(ends[1], trust, host="127.0.0.1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await ours.begin()
    return ours, theirs[0]


async def test_over_tls_receiving_never_waits_for_sending(certificate: tuple[str, str]) -> None:
    ends = await _transports(certificate)
    received = [0, 0]
    size = 500_000

    async def receive(number: int) -> None:
        while received[number] < size:
            received[number] += len(await ends[number].receive())

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number, end in enumerate(ends):
                nursery.start_soon(end.send_all, b"x" * size)
                nursery.start_soon(receive, number)
    for end in ends:
        end.close()


async def test_over_tls_not_sent_means_that_nothing_has_left(certificate: tuple[str, str]) -> None:
    """The first record of a large request may have arrived when the second fails: never sent again, never reported as unsent."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    posts = 0

    def peer(listening: socket.socket) -> None:
        nonlocal posts
        while True:
            try:
                accepted, _ = listening.accept()
                with context.wrap_socket(accepted, server_side=True) as one:
                    while said := one.recv(16_384):
                        if said.startswith(b"POST"):
                            posts += 1
                            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                            break
                        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            except OSError as error:
                if isinstance(error, ssl.SSLError | ConnectionError):
                    continue
                return

    options = ClientOptions(tls=ssl.create_default_context(cafile=certificate[0]))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=peer, args=(listening,), daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/"
        for number in range(1, 9):
            async with open_client(options) as client:
                await client.request("GET", url)
                with pytest.raises(OutcomeUnknown):
                    await client.request("POST", url, body=bytes(3_000_000))
            assert posts == number
        listening.shutdown(socket.SHUT_RDWR)
        await trio.to_thread.run_sync(thread.join)


@pytest.mark.parametrize("is_secure", [False, True])
async def test_an_early_refusal_of_a_large_body_arrives(is_secure: bool, certificate: tuple[str, str]) -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await respond(send, 413, b"x" * 200_000, content_type=TEXT, headers=[(b"connection", b"close")])

    options = ClientOptions(tls=ssl.create_default_context(cafile=certificate[0]))
    tls = server_tls(*certificate) if is_secure else None
    async with sockets.serving(refuse, tls=tls) as (_, port), open_client(options) as client:
        for _ in range(4):
            url = f"http{'s' if is_secure else ''}://127.0.0.1:{port}/"
            response = await client.request("POST", url, body=bytes(12_000_000))
            assert (response.status, len(response.body)) == (413, 200_000)


async def test_close_notify_waits_for_a_full_socket(certificate: tuple[str, str]) -> None:
    ours, theirs = await _transports(certificate)
    received = 0

    async def answer() -> None:
        await ours.send_all(b"x" * 300_000)
        await ours.finish_sending()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            while part := await theirs.receive():
                received += len(part)
                await trio.lowlevel.checkpoint()
    assert received == 300_000
    assert theirs.ended_cleanly
    for end in (ours, theirs):
        end.close()
