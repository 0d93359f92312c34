"""The servers that bench/wire.py compares: the same work, a POST of some bytes answered with as many, on each.

Run as `python -m bench.wire_servers NAME DESCRIPTOR`, on a listening socket that the parent passes.
"""

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

ANSWER_BYTES = 200
_ANSWER = b"x" * ANSWER_BYTES
_HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % ANSWER_BYTES)]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """The bare ASGI application: read the body, answer."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _ANSWER})


def florin(listening: socket.socket) -> None:
    """Our own."""
    import trio

    from server.http.listener import Listener

    trio.run(Listener(answer, listening).run)


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
    from quart_trio import QuartTrio

    app = QuartTrio("bench")

    @app.post("/")
    async def post() -> bytes:
        from quart import request

        await request.get_data()
        return _ANSWER

    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.loglevel = "ERROR"
    trio.run(hypercorn.trio.serve, app, config)


SERVERS: dict[str, Callable[[socket.socket], None]] = {"florin": florin, "uvicorn": uvicorn, "quart_trio": quart_trio}

if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[3])})
    SERVERS[sys.argv[1]](socket.socket(fileno=int(sys.argv[2])))
