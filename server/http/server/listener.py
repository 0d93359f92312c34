"""Accepts connections and serves each in its own task, within limits.

Invariants: at most `connections_max` are served at once, and further ones wait in the kernel's backlog; running out of file
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
from server.http.server.connection import HEADER_SECONDS, Connection, ListenerState
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

    Raises OSError if the address is taken or not local.
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
    """That many listening sockets on one port, where 0 means any free one. Raises OSError if another program uses it.

    A socket without SO_REUSEPORT is bound first for a moment, which fails even if the other program would share its port.
    """
    with bind(host, port) as probe:
        chosen: int = probe.getsockname()[1]
    return [bind(host, chosen, reuse_port=True) for _ in range(count)]


def bind_unix(path: str, *, mode: int = 0o660) -> socket.socket:
    """A listening unix socket. One left by a dead server is replaced. Raises OSError."""
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
    """The options of a listener. `proxy_protocol`: every connection begins with a PROXY header, version 2. `websockets`,
    `lifespan`: the application serves these scopes; otherwise an upgrade is ignored. `websocket_deflate`: compress messages if
    the peer offers it. `render`: makes the replies that do not come from the application.
    """

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
    """Serves an application on a listening socket. `run` owns the connections' nursery; `drain` ends it.

    It can also accept from sockets of others (`adopt`), which it does not close.
    """

    def __init__(self, app: Application, listening: socket.socket, options: ListenerOptions | None = None) -> None:
        self._app = app
        self._socket = listening
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._options = options or ListenerOptions()
        self._shared: ListenerState | None = None
        self._connections: set[Connection] = set()
        self._awaiting_proxy_header: set[socket.socket] = set()
        self._free = trio.Semaphore(self._options.connections_max)
        self._last_ended = trio.Event()
        self._accepting = trio.CancelScope()
        self._adopted: dict[socket.socket, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    @property
    def port(self) -> int:
        """The TCP port of the socket."""
        port: int = self._socket.getsockname()[1]
        return port

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept and serve until drained or canceled. Returns when the last connection has ended."""
        options = self._options
        async with AsyncExitStack() as stack:
            stack.enter_context(self._socket)
            state = await stack.enter_async_context(open_lifespan(self._app)) if options.lifespan else {}
            shared = self._shared = ListenerState(
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
            await housekeeping.start(shared.reaper.run)
            async with trio.open_nursery() as connections:
                self._nursery = connections
                with self._accepting, self._socket:  # closed as soon as nothing more is accepted
                    task_status.started()
                    await self._accept(connections, shared, self._socket)
            housekeeping.cancel_scope.cancel()

    def adopt(self, listening: socket.socket) -> None:
        """Accept from this socket too. Nothing changes if that is so already, or if this listener does not run."""
        if self._nursery is None or self._shared is None or self._accepting.cancel_called or listening in self._adopted:
            return
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
        scope = self._adopted[listening] = trio.CancelScope()
        self._nursery.start_soon(self._accept_within, scope, self._nursery, self._shared, listening)

    def release(self, listening: socket.socket) -> None:
        """Accept no more from an adopted socket."""
        if listening in self._adopted:
            self._adopted.pop(listening).cancel()

    def retire(self) -> None:
        """Tell every client to go elsewhere with its next request, and serve on meanwhile."""
        if self._shared is not None:
            self._shared.is_retiring = True

    async def drain(self, *, seconds: float) -> None:
        """Stop accepting, let running requests finish for `seconds`, then end their connections.

        If an application continues all the same, the caller has to cancel `run`.
        """
        if self._shared is not None:
            self._shared.is_draining = True
        for adopted in list(self._adopted):
            self.release(adopted)
        self._accepting.cancel()
        for stranger in self._awaiting_proxy_header:
            with suppress(OSError):
                stranger.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            connection.drain()
        with trio.move_on_after(seconds):
            if self._connections:
                await self._last_ended.wait()
        for connection in self._connections:
            connection.expire()

    async def _accept_within(
        self, scope: trio.CancelScope, nursery: trio.Nursery, shared: ListenerState, listening: socket.socket
    ) -> None:
        with scope:
            await self._accept(nursery, shared, listening)

    async def _accept(self, nursery: trio.Nursery, shared: ListenerState, listening: socket.socket) -> None:
        while True:
            async with self._free:
                pass  # a place is free, and taken below without waiting
            await trio.lowlevel.wait_readable(listening)
            try:
                for _ in range(ACCEPTED_AT_ONCE_MAX):
                    if not self._free.value:
                        break
                    peer, address = listening.accept()
                    self._free.acquire_nowait()
                    nursery.start_soon(self._serve, peer, address, shared)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    raise
                if error.errno not in _OUT_OF_RESOURCES:
                    continue  # the peer left before it was accepted
                _log.warning("out of file descriptors or memory: not accepting for a moment", error=str(error))
            else:
                continue
            await trio.sleep(OUT_OF_RESOURCES_SECONDS)

    async def _serve(self, peer: socket.socket, address: Any, shared: ListenerState) -> None:
        transport: Transport | None = None
        connection: Connection | None = None
        try:
            peer.setblocking(False)  # noqa: FBT003 - the standard library's signature
            if peer.family != socket.AF_UNIX:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            addresses = _addresses(peer, address, "https" if self._options.tls else "http")
            if self._options.proxy_protocol:
                self._awaiting_proxy_header.add(peer)
                with trio.fail_after(HEADER_SECONDS):
                    addresses = await _read_proxy_header(peer, addresses)
            transport = TlsTransport(peer, self._options.tls) if self._options.tls else SocketTransport(peer)
            connection = Connection(transport, addresses, shared)
            self._connections.add(connection)
            await connection.serve()
        except (OSError, BadRequest, trio.TooSlowError):
            pass  # the peer left, or was not the proxy that it should have been, before any request
        except Exception:  # noqa: BLE001 - a bug may end one connection, never the worker
            _log.exception("a connection failed")
        finally:
            self._awaiting_proxy_header.discard(peer)
            if transport is None:
                peer.close()
            if connection is not None:
                self._connections.discard(connection)
            self._free.release()
            if shared.is_draining and not self._connections:
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
