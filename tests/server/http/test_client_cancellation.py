"""The client, canceled at every checkpoint, and under a crowd."""

import socket
from functools import partial

import pytest
import trio

from server.http.asgi import Receive, Scope, Send, read_body
from server.http.client import dial
from server.http.client.client import Client, ClientOptions, open_client
from tests.support.cancellation import cancelled_at
from tests.support.http import echo, in_vain, serving


def _close_idle(client: Client) -> None:
    for connection in list(client.reaper.watched):
        connection.expire()


async def _slowly(scope: Scope, receive: Receive, send: Send) -> None:
    """An answer in many parts, so that there are many places to cancel."""
    await read_body(receive, bytes_max=10_000_000)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for letter in scope["path"] + "!":
        await trio.sleep(0.002)
        await send({"type": "http.response.body", "body": letter.encode(), "more_body": letter != "!"})


@pytest.mark.parametrize("is_warm", [False, True])
async def test_cancelled_at_every_checkpoint_the_next_call_gets_its_own_answer(
    is_warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "look_up", lambda host, port: [(socket.AF_INET, ("127.0.0.1", port))] * 3)
    body = b"x" * 4_000_000  # more than the kernel takes at once
    async with serving(_slowly) as (_, port), open_client(ClientOptions(connections_per_origin_max=1)) as client:
        url = f"http://three.example:{port}"
        for step in range(1, 10_000):
            if is_warm:
                await client.request("GET", f"{url}/warm")
            else:
                _close_idle(client)
            was_cancelled = await cancelled_at(step, partial(client.request, "POST", f"{url}/cancelled", body=body))
            assert client.connections <= 1
            response = await client.request("GET", f"{url}/{step}")
            assert response.body == b"/%d!" % step
            if not was_cancelled:
                break
        assert step > 5


async def test_cancelled_while_it_waits_for_a_place_or_a_connection() -> None:
    async with serving(_slowly) as (_, port), open_client(ClientOptions(connections_per_origin_max=1)) as client:
        url = f"http://127.0.0.1:{port}"
        for step in range(1, 20):
            _close_idle(client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.request, "GET", f"{url}/first")
                await trio.testing.wait_all_tasks_blocked()
                await cancelled_at(step, partial(client.request, "GET", f"{url}/second"))
            assert (await client.request("GET", f"{url}/third")).body == b"/third!"


async def _call_many(client: Client, port: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(client.request, "GET", f"http://127.0.0.1:{port}/{number}")


async def test_origins_are_bounded_and_a_crowd_shares_few_connections() -> None:
    async with serving(echo) as (_, port), open_client(ClientOptions(connections_per_origin_max=4)) as client:
        await _call_many(client, port)
        assert client.connections == 4
        for number in range(1_200):
            client._add_pool(f"http://127.0.0.1:{number + 1}")
        assert len(client._pools) <= 1_024
        assert client.connections == 0, "what is at rest may be forgotten, and is closed then"
        await in_vain(client, "http://127.0.0.1:9/ ")
