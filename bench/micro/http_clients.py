"""The clients that `bench.micro.http` compares, each keeping 64 calls under way on pooled connections.

`python -m bench.micro.http_clients NAME PORT` reads numbers from its input, makes that many calls for each, and writes `done`.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

TASKS = 64
BODY = b"y" * 200


def florin(port: int) -> None:
    """Ours."""
    import trio

    from server.http.client.client import open_client

    url = f"http://127.0.0.1:{port}/"

    async def main() -> None:
        async with open_client() as client:

            async def caller(left: Iterator[int]) -> None:
                for _ in left:
                    response = await client.request("POST", url, body=BODY)
                    assert response.status == 200

            await _serve_trio(caller)

    trio.run(main)


def httpx(port: int) -> None:
    """httpx on trio as it comes, keeping 20 connections alive."""
    _httpx(port, connections_max=100, idle_max=20)


def httpx_tuned(port: int) -> None:
    """httpx on trio with a pool as large as the load."""
    _httpx(port, connections_max=TASKS, idle_max=TASKS)


def _httpx(port: int, *, connections_max: int, idle_max: int) -> None:
    import httpx as peer  # noqa: ASYNC127 - this is the peer
    import trio

    url = f"http://127.0.0.1:{port}/"

    async def main() -> None:
        limits = peer.Limits(max_connections=connections_max, max_keepalive_connections=idle_max)
        async with peer.AsyncClient(limits=limits, trust_env=False) as client:

            async def caller(left: Iterator[int]) -> None:
                for _ in left:
                    response = await client.post(url, content=BODY)
                    assert response.status_code == 200

            await _serve_trio(caller)

    trio.run(main)


def aiohttp(port: int) -> None:
    """aiohttp on uvloop: the fast client of asyncio."""
    import asyncio

    import aiohttp as peer
    import uvloop

    url = f"http://127.0.0.1:{port}/"

    async def main() -> None:
        async with peer.ClientSession(connector=peer.TCPConnector(limit=TASKS)) as session:

            async def caller(left: Iterator[int]) -> None:
                for _ in left:
                    async with session.post(url, data=BODY) as response:
                        assert response.status == 200
                        await response.read()

            while line := await asyncio.to_thread(sys.stdin.readline):
                left = iter(range(int(line)))
                await asyncio.gather(*(caller(left) for _ in range(TASKS)))
                print("done", flush=True)

    uvloop.run(main())


async def _serve_trio(caller: Callable[[Iterator[int]], Any]) -> None:
    import trio

    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        left = iter(range(int(line)))
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(partial(caller, left))
        print("done", flush=True)


CLIENTS: dict[str, Callable[[int], None]] = {
    "florin": florin,
    "aiohttp": aiohttp,
    "httpx": httpx,
    "httpx_tuned": httpx_tuned,
}

if __name__ == "__main__":
    CLIENTS[sys.argv[1]](int(sys.argv[2]))
