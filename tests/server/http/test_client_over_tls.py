"""The client over TLS: close_notify, cut bodies, early answers."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from server.http.client.client import ClientOptions, open_client
from server.http.client.errors import OutcomeUnknown
from tests.support.http import OK


@asynccontextmanager
async def tls_peer(certificate: tuple[str, str], *writes: bytes, farewell: bool = True) -> AsyncIterator[str]:
    """A peer over TLS that writes these records, all at once, for each request; then it may send close_notify."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def peer(stream: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        async with stream:
            while True:
                try:
                    if tls.read(65_536) == b"":
                        return
                    for write in writes:
                        tls.write(write)
                    if farewell:
                        with suppress(ssl.SSLWantReadError):
                            tls.unwrap()
                    await stream.send_all(outgoing.read())
                    if not farewell:
                        return
                except ssl.SSLWantReadError:
                    if said := outgoing.read():
                        await stream.send_all(said)
                    received = await stream.receive_some(65_536)
                    if not received:
                        return
                    incoming.write(received)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, peer, 0, host="127.0.0.1"))
        yield f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


def trusting(certificate: tuple[str, str]) -> ClientOptions:
    return ClientOptions(tls=ssl.create_default_context(cafile=certificate[0]))


async def test_over_tls_too_every_call_gets_its_own_answer(certificate: tuple[str, str]) -> None:
    """A second record in the same packet lies where no poll of the socket sees it."""
    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
    async with tls_peer(certificate, OK, extra) as url, open_client(trusting(certificate)) as client:
        for _ in range(3):
            assert (await client.request("GET", url)).body == b"hi"


async def test_a_close_notify_after_a_response_is_seen_before_the_next_request(certificate: tuple[str, str]) -> None:
    async with tls_peer(certificate, OK) as url, open_client(trusting(certificate)) as client:
        for _ in range(3):
            assert (await client.request("POST", url, body=b"x")).body == b"hi"


@pytest.mark.parametrize("farewell", [True, False])
async def test_a_body_that_was_cut_short_is_not_whole(certificate: tuple[str, str], farewell: bool) -> None:
    """RFC 9112, 9.8: without close_notify nobody knows whether the end of the stream is the end of the body."""
    endless = b'HTTP/1.1 200 OK\r\n\r\n{"amount": 10'
    async with tls_peer(certificate, endless, farewell=farewell) as url, open_client(trusting(certificate)) as client:
        if farewell:
            assert (await client.request("GET", url)).body == b'{"amount": 10'
        else:
            with pytest.raises(OutcomeUnknown):
                await client.request("GET", url)
