"""Serves an ASGI application on hypercorn's trio worker, for low traffic over HTTP/2 or with Quart, on a private listener.

It works around defects of hypercorn 0.18: an exception that a connection's bytes raise ends that connection and not the process;
a client that never reads cannot delay the end, although hypercorn shields its sends from cancellation; and the number of
connections is bounded. Not worked around: it keeps a stalled body forever, accepts what `server.http.server.parser` refuses, and
cancels a handler whose client disconnects. So it is never exposed, and takes no payments.
"""

import socket
import ssl
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import wrap_app

from server.http.asgi import Application
from server.http.server.lifespan import open_lifespan

CONNECTIONS_MAX = 256
DRAIN_SECONDS = 5.0
_log = structlog.get_logger()


@dataclass(slots=True)
class _SharedState:
    """The state that all connections share."""

    app: AppWrapper
    config: Config
    context: WorkerContext
    state: dict[str, Any]
    tls: ssl.SSLContext | None
    streams: set[trio.SocketStream] = field(default_factory=set)
    is_stopping: bool = False
    last_ended: trio.Event = field(default_factory=trio.Event)


async def serve(
    app: Application,
    listening: socket.socket,
    *,
    tls: ssl.SSLContext | None = None,
    stop: trio.Event | None = None,
    drain_seconds: float = DRAIN_SECONDS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop`, then let running requests finish for `drain_seconds`. If canceled, it ends without them. An
    application with a lifespan is told in both cases.

    HTTP/2 is offered by ALPN if `tls` is given, and to clients that begin with it (RFC 9113, 3.3). Raises `StartupFailed`.
    """
    stop = trio.Event() if stop is None else stop
    config = Config()
    config.loglevel = "ERROR"
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    async with listener, open_lifespan(app) as state, trio.open_nursery() as connections:
        asgi = wrap_app(cast("Any", app), config.wsgi_max_body_size, "asgi")
        shared = _SharedState(asgi, config, WorkerContext(None), state, tls)
        try:
            async with trio.open_nursery() as accepting:
                handler = partial(_serve_connection, shared)
                accepting.start_soon(partial(trio.serve_listeners, handler, [listener], handler_nursery=connections))
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            shared.is_stopping = True
            await shared.context.terminated.set()
            if shared.streams:
                with trio.move_on_after(drain_seconds):
                    await shared.last_ended.wait()
        finally:
            for stream in shared.streams:
                stream.socket.close()  # which ends even what hypercorn shields
            connections.cancel_scope.cancel()


async def _serve_connection(shared: _SharedState, stream: trio.SocketStream) -> None:
    if len(shared.streams) >= CONNECTIONS_MAX:
        await trio.aclose_forcefully(stream)
        return
    shared.streams.add(stream)
    secured: Any = stream if shared.tls is None else trio.SSLStream(stream, shared.tls, server_side=True, https_compatible=True)
    state = ConnectionState(shared.state.copy())
    try:
        await TCPServer(shared.app, shared.config, shared.context, state, secured)
    except Exception as error:  # noqa: BLE001 - hypercorn lets exceptions that a peer's bytes raise escape
        _log.warning("a connection failed in hypercorn", error=repr(error))
    finally:
        stream.socket.close()
        shared.streams.discard(stream)
        if shared.is_stopping and not shared.streams:
            shared.last_ended.set()
