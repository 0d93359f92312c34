"""The servers that `bench.micro.http` compares, each the plainest honest program of its kind.

`python -m bench.micro.http_servers NAME DESCRIPTOR` serves on a listening socket that the parent passes. HTTP: a POST is answered
with as many bytes. Websockets: one message is sent to all listeners.
"""

import socket
import sys
from collections.abc import Callable
from typing import Any

ANSWER = b"x" * 200
STALLING_FRAMES, STALLING_FRAME_BYTES = 200, 16_384
"""More than the kernel buffers for a peer that does not read, and less than what gets it cut off."""
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

    from server.http.server.listener import Listener

    trio.run(Listener(answer, listening).run)


def florin_waiting(listening: socket.socket) -> None:
    """Ours, with an application that answers once that many requests wait."""
    import trio

    from server.http.server.listener import Listener

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


def florin_fan_out(listening: socket.socket) -> None:
    """Ours: a POST's body goes to all websockets as one frame. `/stall` fills the buffers of the first, which does not read."""
    import trio

    from server.http.asgi import read_body, respond
    from server.http.server.listener import Listener, ListenerOptions
    from server.http.websocket.frame import Frame, send_frame

    listeners: list[tuple[Any, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            listeners.append((scope, send))
            await receive()
            return
        text = (await read_body(receive, bytes_max=1_000)).decode()
        if scope["path"] == "/stall":
            for _ in range(STALLING_FRAMES):
                await send_frame(*listeners[0], Frame.of("z" * STALLING_FRAME_BYTES))
        else:
            frame = Frame.of(text)
            for number, one in enumerate(listeners):
                await send_frame(*one, frame)
                if number % 256 == 0:
                    await trio.lowlevel.checkpoint()
        await respond(send, 200, b"x", content_type=b"text/plain")

    trio.run(Listener(app, listening, ListenerOptions(websockets=True)).run)


def trio_websocket(listening: socket.socket) -> None:
    """trio-websocket: the idiomatic one; each message on any websocket goes to all."""
    import trio
    import trio_websocket as peer

    listeners: list[Any] = []

    async def serve(request: Any) -> None:
        one = await request.accept()
        listeners.append(one)
        while True:
            text = await one.get_message()
            for other in listeners:
                await other.send_message(text)

    async def main() -> None:
        stream = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        await peer.WebSocketServer(serve, [stream]).run()

    trio.run(main)


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
    "florin_fan_out": florin_fan_out,
    "trio_websocket": trio_websocket,
    "uvicorn": uvicorn,
    "quart_trio": quart_trio,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](socket.socket(fileno=int(sys.argv[2])))
