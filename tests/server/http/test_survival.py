"""A server survives peers that reset, floods, a lack of descriptors, and slowhttptest."""

import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import trio

from server.http.asgi import Receive, Scope, Send, read_body, respond
from server.http.client.client import Client, ClientOptions, open_client
from server.http.client.errors import ClientError
from server.http.server.listener import Listener, bind
from tests.conftest import program
from tests.support.florin import until
from tests.support.http import GET, TEXT, echo, request, serving, talk

LINGER_NONE = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER with no time: closing resets."""


async def test_a_body_of_20_mb_is_taken_and_given() -> None:
    body = os.urandom(20_000_000)

    async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, await read_body(receive, bytes_max=len(body)), content_type=TEXT)

    async with serving(mirror) as (_, port), open_client(ClientOptions(response_bytes_max=30_000_000)) as client:
        response = await client.request("POST", f"http://127.0.0.1:{port}/", body=body)
        assert response.body == body
        assert client.connections == 1


async def test_a_body_over_the_bound_is_refused_while_it_still_comes() -> None:
    taken = 0

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal taken
        while taken <= 100_000:
            taken += len((await receive()).get("body", b""))
        await respond(send, 413, b"too large", content_type=TEXT)

    async with serving(bounded) as (_, port), open_client() as client:
        response = await client.request("POST", f"http://127.0.0.1:{port}/", body=b"x" * 20_000_000)
        assert response.status == 413
    assert taken < 1_000_000, "20 MB are not read to be refused"


async def test_a_reset_in_the_middle_of_a_response_affects_no_other_connection() -> None:
    ended: list[str] = []

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/small":
            await respond(send, 200, b"ok", content_type=TEXT)
            return
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        except OSError:
            ended.append(scope["path"])

    async with serving(flood) as (listener, port):
        for number in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(request(f"GET /{number} HTTP/1.1", "Host: a"))
            await stream.receive_some(10_000)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
            await stream.aclose()
        assert b"ok" in await talk(port, request("GET /small HTTP/1.1", "Host: a"))
        await until(lambda: not listener.connections)
    assert len(ended) == 20, "the application is told by OSError"


async def test_a_half_closed_client_gets_its_answer() -> None:
    async def slowly(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, bytes_max=100)
        await trio.sleep(0.1)
        await respond(send, 200, b"done", content_type=TEXT)

    async with serving(slowly) as (_, port):
        assert b"done" in await talk(port, GET, half_close=True)


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Allow only that many more descriptors than are open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(len(used) + spare + max(used)) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_descriptors_left_is_survived() -> None:
    """Peers connect in another process; when ours has no descriptor left, those that wait are served later."""
    script = """
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("connected", flush=True)
sys.stdin.readline()
for one in held[:-1]:
    one.close()
held[-1].settimeout(5)
held[-1].sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
print(held[-1].recv(1000).split(b"\\r\\n")[0].decode(), flush=True)
"""
    async with serving() as (listener, port):
        with subprocess.Popen(  # noqa: ASYNC220 - it is ready at once, and its protocol is lines
            [sys.executable, "-c", script, str(port), "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as peers:
            assert peers.stdin is not None
            assert peers.stdout is not None
            with few_descriptors(spare=20):
                assert await trio.to_thread.run_sync(peers.stdout.readline) == "connected\n"
                await trio.sleep(0.3)
                assert 0 < listener.connections < 60
                peers.stdin.write("go on\n")
                assert await trio.to_thread.run_sync(peers.stdout.readline) == "HTTP/1.1 200 OK\n"
        assert b"200 OK" in await talk(port, GET)


async def test_a_drain_under_load_loses_no_answer() -> None:
    """An accepted request is answered; any other is told so by a closed connection before anything was done."""
    begun = answered = 0

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal begun
        await read_body(receive, bytes_max=100)
        begun += 1
        await trio.sleep(0.002)
        await respond(send, 200, b"x", content_type=TEXT)

    async def load(client: Client, port: int) -> None:
        nonlocal answered
        with suppress(ClientError):
            while True:
                response = await client.request("POST", f"http://127.0.0.1:{port}/", body=b"x")
                answered += response.status == 200

    listener = Listener(count, bind("127.0.0.1", 0))
    port = listener.port
    with trio.fail_after(20):
        async with open_client() as client, trio.open_nursery() as serving_nursery:
            await serving_nursery.start(listener.run)
            async with trio.open_nursery() as loading:
                for _ in range(50):
                    loading.start_soon(load, client, port)
                await until(lambda: answered >= 500)
                await listener.drain(seconds=5)
    assert answered == begun


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("slow headers", ["-H", "-i", "1"]),
        ("slow body", ["-B", "-i", "1", "-s", "8192"]),
        ("slow read", ["-X", "-w", "1", "-y", "2", "-n", "1", "-z", "1", "-k", "3"]),
        ("ranges", ["-R", "-a", "5", "-b", "500"]),
    ],
)
async def test_slowhttptest_finds_the_service_available(mode: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """200 connections that dribble; the tool itself probes whether others are still served."""
    tool = program("slowhttptest")
    for name, seconds in (("HEADER", 2.0), ("BODY", 2.0), ("IDLE", 2.0), ("WRITE", 2.0)):
        monkeypatch.setattr(f"server.http.server.connection.{name}_SECONDS", seconds)

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, bytes_max=100_000)
        await respond(send, 200, b"x" * 200_000, content_type=TEXT)

    async with serving(page) as (listener, port):
        # -l: while it tries, the service must answer its probes within -p
        command = [tool, *options, "-c", "200", "-r", "200", "-l", "6", "-p", "2", "-v", "1", "-u", f"http://127.0.0.1:{port}/"]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        said = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
        assert set(re.findall(r"service available: *(\w+)", re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", said))) == {"YES"}, said
        await until(lambda: not listener.connections)
        assert b"200 OK" in await talk(port, GET)


async def test_many_hang_up_at_once() -> None:
    async with serving(echo) as (listener, port):
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(partial(_hang_up, port))
        assert b"200 OK" in await talk(port, GET)
        await until(lambda: not listener.connections)


async def _hang_up(port: int) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
    with suppress(trio.BrokenResourceError):
        await stream.send_all(GET * 3)
    await stream.aclose()
