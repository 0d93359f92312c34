"""Accepts connections and serves each in a task of its own, within bounds.

Invariants: at most `connections_max` are served at once, past which new ones wait in the kernel's backlog; out of file
descriptors is survived; a drain ends in bounded time whatever the peers do.
"""

import errno
import socket as stdlib_socket

import structlog
import trio

from server.http.asgi import Application
from server.http.connection import Connection
from server.http.reaper import Reaper

CONNECTIONS_MAX = 16_384
BACKLOG = 2_048
OUT_OF_RESOURCES_SECONDS = 0.1
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_log = structlog.get_logger()


def bind(host: str, port: int, *, reuse_port: bool = False) -> stdlib_socket.socket:
    """A listening TCP socket. With `reuse_port` several of them share the port and the kernel spreads connections.

    Raises OSError where the address is taken or not ours.
    """
    family = stdlib_socket.AF_INET6 if ":" in host else stdlib_socket.AF_INET
    listening = stdlib_socket.socket(family, stdlib_socket.SOCK_STREAM)
    try:
        listening.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if reuse_port:
            listening.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
    except OSError:
        listening.close()
        raise
    return listening


class Listener:
    """Serves an application on one listening socket. `run` owns the connections' nursery; `drain` ends it."""

    def __init__(self, app: Application, listening: stdlib_socket.socket, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self._app = app
        self._socket = trio.socket.from_stdlib_socket(listening)
        self._connections: set[Connection] = set()
        self._free = trio.Semaphore(connections_max)
        self._draining = trio.Event()
        self._last_ended = trio.Event()
        self._accepting = trio.CancelScope()

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        port: int = self._socket.getsockname()[1]
        return port

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until drained or cancelled; returns when the last connection has ended."""
        reaper = Reaper()
        async with trio.open_nursery() as housekeeping:
            await housekeeping.start(reaper.run)
            async with trio.open_nursery() as connections:
                with self._accepting, self._socket:
                    task_status.started()
                    await self._accept(connections, reaper)
            housekeeping.cancel_scope.cancel()

    async def drain(self, *, seconds: float) -> None:
        """Stop accepting, let requests in hand finish for `seconds`, then end whatever is left."""
        self._draining.set()
        self._accepting.cancel()
        for connection in self._connections:
            if connection.idle:
                connection.expire()
        with trio.move_on_after(seconds):
            if self._connections:
                await self._last_ended.wait()
        for connection in self._connections:
            connection.expire()

    async def _accept(self, nursery: trio.Nursery, reaper: Reaper) -> None:
        while True:
            async with self._free:
                pass  # a place is free; only this task takes places, so it still is after the accept
            peer = await self._accept_one()
            if peer is None:
                await trio.sleep(OUT_OF_RESOURCES_SECONDS)
                continue
            self._free.acquire_nowait()
            nursery.start_soon(self._serve, peer, reaper)

    async def _accept_one(self) -> trio.socket.SocketType | None:
        """The next connection, or None where there are no resources for it now."""
        while True:
            try:
                peer, _ = await self._socket.accept()
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    raise
                if error.errno in _OUT_OF_RESOURCES:
                    _log.warning("out of file descriptors or memory: not accepting for a moment", error=str(error))
                    return None
            else:
                return peer

    async def _serve(self, peer: trio.socket.SocketType, reaper: Reaper) -> None:
        try:
            peer.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
            connection = Connection(peer, self._app, reaper, is_draining=self._draining)
        except OSError:
            peer.close()
            self._free.release()
            return
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
            self._free.release()
            if self._draining.is_set() and not self._connections:
                self._last_ended.set()
