"""The servers that `bench.wire` compares, each the plainest honest program of its kind.

`python -m bench.wire_servers NAME DESCRIPTOR` serves on a listening socket that the parent passes. HTTP: a POST of some bytes is
answered with as many. Websockets: everything said on one POST is sent to all who listen.
"""

import socket
import sys
from collections.abc import Callable
from typing import Any

ANSWER = b"x" * 200
_HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(ANSWER))]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """The bare ASGI application: read the body, answer."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


def florin(listening: socket.socket) -> None:
    """Ours."""
    import trio

    from server.http.listener import Listener

    trio.run(Listener(answer, listening).run)


def florin_waiting(listening: socket.socket) -> None:
    """Ours, with an application that answers nobody before so many wait."""
    import trio

    from server.http.listener import Listener

    crowd, everybody = int(sys.argv[3]), trio.Event()
    waiting = 0

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        nonlocal waiting
        waiting += 1
        if waiting >= crowd:
            everybody.set()
        await everybody.wait()
        await answer(scope, receive, send)

    trio.run(Listener(wait, listening).run)


def uvicorn(listening: socket.socket) -> None:
    """uvicorn on uvloop with httptools, bare ASGI."""
    import uvicorn as peer

    config = peer.Config(answer, loop="uvloop", http="httptools", access_log=False, log_level="error")
    peer.Server(config).run(sockets=[listening])


def quart_trio(listening: socket.socket) -> None:
    """quart-trio on hypercorn's trio worker: the idiomatic stack."""
    import hypercorn.trio
    import trio
    from hypercorn.config import Config
    from quart import request
    from quart_trio import QuartTrio

    app = QuartTrio("bench")

    @app.post("/")
    async def post() -> bytes:
        await request.get_data()
        return ANSWER

    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.loglevel = "ERROR"
    trio.run(hypercorn.trio.serve, app, config)


SERVERS: dict[str, Callable[[socket.socket], None]] = {
    "florin": florin,
    "florin_waiting": florin_waiting,
    "uvicorn": uvicorn,
    "quart_trio": quart_trio,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](socket.socket(fileno=int(sys.argv[2])))
