"""Accepts connections and serves each in a task of its own, within bounds.

Invariants: at most `connections_max` are served at once, past which new ones wait in the kernel's backlog; out of file
descriptors is survived; a drain ends in bounded time whatever the peers do.
"""

import errno
import os
import socket
import ssl
import stat
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from server.http.asgi import Application
from server.http.reaper import Reaper
from server.http.refusal import Render, plain
from server.http.server.connection import HEADER_SECONDS, Connection, House
from server.http.server.forwarded import PROXY_HEADER_BYTES, Addresses, Networks, proxied, proxy_length
from server.http.server.lifespan import open_lifespan
from server.http.server.parser import BadRequest
from server.http.tls import TlsTransport
from server.http.transport import SocketTransport, Transport

BACKLOG = 2_048
ACCEPTED_AT_ONCE_MAX = 64
OUT_OF_RESOURCES_SECONDS = 0.1
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_log = structlog.get_logger()


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A listening TCP socket. With `reuse_port` several of them share the port and the kernel spreads connections.

    Raises OSError where the address is taken or not ours.
    """
    if not 0 <= port <= 65_535:
        raise OSError(errno.EINVAL, f"{port} is not a port")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        return _listen(listening)
    except OSError:
        listening.close()
        raise


def bind_shared(host: str, port: int, count: int) -> list[socket.socket]:
    """So many listening sockets on one port, 0 being any free one. Raises OSError where any other program is on it.

    A socket without SO_REUSEPORT is bound first for a moment: it fails even where the other program would share its port.
    """
    with bind(host, port) as probe:
        chosen: int = probe.getsockname()[1]
    return [bind(host, chosen, reuse_port=True) for _ in range(count)]


def bind_unix(path: str, *, mode: int = 0o660) -> socket.socket:
    """A listening unix socket; one that a dead server has left is replaced. Raises OSError."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                if is_socket:
                    os.unlink(path)
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        listening.bind(path)
        os.chmod(path, mode)
        return _listen(listening)
    except OSError:
        listening.close()
        raise


def _listen(listening: socket.socket) -> socket.socket:
    listening.listen(BACKLOG)
    return listening


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """How to serve. `proxy_protocol`: every connection begins with a PROXY header, version 2. `websockets`, `lifespan`: the
    application serves these scopes too; where it does not, an upgrade is ignored. `websocket_deflate`: compress messages where
    the peer offers it. `render`: what is answered where the application did not."""

    connections_max: int = 16_384
    requests_in_flight_max: int = 16_384
    render: Render = plain
    tls: ssl.SSLContext | None = None
    proxy_protocol: bool = False
    trusted_proxies: Networks = ()
    websockets: bool = False
    websocket_deflate: bool = False
    lifespan: bool = False


class Listener:
    """Serves an application on one listening socket. `run` owns the connections' nursery; `drain` ends it."""

    def __init__(self, app: Application, listening: socket.socket, options: ListenerOptions | None = None) -> None:
        self._app = app
        self._socket = listening
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._options = options or ListenerOptions()
        self._house: House | None = None
        self._connections: set[Connection] = set()
        self._strangers: set[socket.socket] = set()
        self._free = trio.Semaphore(self._options.connections_max)
        self._last_ended = trio.Event()
        self._accepting = trio.CancelScope()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        port: int = self._socket.getsockname()[1]
        return port

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until drained or cancelled; returns when the last connection has ended."""
        options = self._options
        async with AsyncExitStack() as stack:
            stack.enter_context(self._socket)
            state = await stack.enter_async_context(open_lifespan(self._app)) if options.lifespan else {}
            house = self._house = House(
                self._app,
                Reaper(),
                requests_in_flight_max=options.requests_in_flight_max,
                render=options.render,
                trusted_proxies=options.trusted_proxies,
                websockets=options.websockets,
                websocket_deflate=options.websocket_deflate,
                state=state,
            )
            housekeeping = await stack.enter_async_context(trio.open_nursery())
            await housekeeping.start(house.reaper.run)
            async with trio.open_nursery() as connections:
                with self._accepting, self._socket:  # closed as soon as nothing more is accepted
                    task_status.started()
                    await self._accept(connections, house)
            housekeeping.cancel_scope.cancel()

    async def drain(self, *, seconds: float) -> None:
        """Stop accepting, let requests in hand finish for `seconds`, then end their connections.

        An application that goes on all the same is for the caller to cancel, with `run`.
        """
        if self._house is not None:
            self._house.is_draining = True
        self._accepting.cancel()
        for stranger in self._strangers:
            with suppress(OSError):
                stranger.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            connection.go_away()
        with trio.move_on_after(seconds):
            if self._connections:
                await self._last_ended.wait()
        for connection in self._connections:
            connection.expire()

    async def _accept(self, nursery: trio.Nursery, house: House) -> None:
        while True:
            async with self._free:
                pass  # a place is free; only this task takes places, so it still is after the wait
            await trio.lowlevel.wait_readable(self._socket)
            try:
                for _ in range(ACCEPTED_AT_ONCE_MAX):
                    if not self._free.value:
                        break
                    peer, address = self._socket.accept()
                    self._free.acquire_nowait()
                    nursery.start_soon(self._serve, peer, address, house)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    raise
                if error.errno not in _OUT_OF_RESOURCES:
                    continue  # the peer was gone before it was accepted
                _log.warning("out of file descriptors or memory: not accepting for a moment", error=str(error))
            else:
                continue
            await trio.sleep(OUT_OF_RESOURCES_SECONDS)

    async def _serve(self, peer: socket.socket, address: Any, house: House) -> None:
        transport: Transport | None = None
        connection: Connection | None = None
        try:
            peer.setblocking(False)  # noqa: FBT003 - the standard library's signature
            if peer.family != socket.AF_UNIX:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            addresses = _addresses(peer, address, "https" if self._options.tls else "http")
            if self._options.proxy_protocol:
                self._strangers.add(peer)
                with trio.fail_after(HEADER_SECONDS):
                    addresses = await _read_proxy_header(peer, addresses)
            transport = TlsTransport(peer, self._options.tls) if self._options.tls else SocketTransport(peer)
            connection = Connection(transport, addresses, house)
            self._connections.add(connection)
            await connection.serve()
        except (OSError, BadRequest, trio.TooSlowError):
            pass  # the peer was gone, or was not the proxy that it should have been, before a request could come
        except Exception:  # noqa: BLE001 - a mistake of ours may end one connection, never the worker
            _log.exception("a connection failed")
        finally:
            self._strangers.discard(peer)
            if transport is None:
                peer.close()
            if connection is not None:
                self._connections.discard(connection)
            self._free.release()
            if house.is_draining and not self._connections:
                self._last_ended.set()


def _addresses(peer: socket.socket, address: Any, scheme: str) -> Addresses:
    if peer.family == socket.AF_UNIX:
        return Addresses(None, (peer.getsockname(), None), scheme)
    return Addresses(address[:2], peer.getsockname()[:2], scheme)


async def _read_proxy_header(peer: socket.socket, addresses: Addresses) -> Addresses:
    """Read exactly the PROXY header and nothing behind it. Raises `BadRequest`, or OSError at an early end."""
    head = await _read_exactly(peer, PROXY_HEADER_BYTES)
    return proxied(addresses, head, await _read_exactly(peer, proxy_length(head)))


async def _read_exactly(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        await trio.lowlevel.wait_readable(peer)
        part = peer.recv(count - len(data))
        if not part:
            raise ConnectionResetError("the connection ended inside the PROXY header")
        data += part
    return data
