"""An HTTP/1.1 client on bare trio: a keep-alive pool per origin, llhttp for the responses.

Its errors say what is known (`server.http.client.errors`), because that decides what may be done next. Invariants: a request is
never sent twice unless the caller says that it is idempotent; once any of it may have been sent no error says `NotSent`; waiting,
connections, responses and time are bounded.
"""

import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import trio

from server.http.asgi import METHODS
from server.http.client.connection import ClientConnection, Times
from server.http.client.dial import AddressCheck, Lookups, dial
from server.http.client.errors import NotSent, OutcomeUnknown
from server.http.client.response import Response, ResponseParser
from server.http.client.url import Origin, parse_origin, split
from server.http.reaper import Reaper
from server.http.tls import TlsTransport, client_tls
from server.http.transport import SocketTransport, Transport

ORIGINS_MAX = 1_024
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
ANSWER_SHARE = 0.2
"""The share of its time that a call must have left when it is sent. One sent later could only end with an unknown outcome."""

_OURS = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The limits of a client.

    `connections_per_origin_max` counts connections in use and idle. `connect_seconds` bounds the wait for a place among them, and
    the wait for a connection, before anything is sent; `write_seconds` each part of the request; `header_seconds` the time from
    the end of the request to the end of the response's head; `total_seconds` the whole call, waiting and connecting included,
    unless the call has its own; `idle_seconds` how long an unused connection is kept. `response_bytes_max` bounds a whole
    response, head included; a larger one fails, or its body is cut with `cuts_responses`. `check` sees every address before it is
    connected to, and may raise `Refused`. `tls` is for peers whose certificates the system does not know.
    """

    connections_per_origin_max: int = 256
    response_bytes_max: int = 1_048_576
    cuts_responses: bool = False
    connect_seconds: float = 3.0
    write_seconds: float = 20.0
    header_seconds: float = 60.0
    total_seconds: float = 60.0
    idle_seconds: float = 60.0
    check: AddressCheck | None = None
    tls: ssl.SSLContext | None = None


@dataclass(slots=True)
class _Pool:
    """An origin: the number of calls under way, those that wait for a place, and idle connections, the latest last."""

    origin: Origin
    host_header: str
    in_use: int = 0
    waiting: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    idle: deque[ClientConnection] = field(default_factory=deque)

    def give_place_back(self) -> None:
        """Give the place to the call that has waited longest, if any."""
        if self.waiting:
            self.waiting.unpark()
        else:
            self.in_use -= 1


@asynccontextmanager
async def open_client(options: ClientOptions | None = None) -> AsyncIterator["Client"]:
    """A client for the block. Calls under way at its end fail as `OutcomeUnknown`.

    It owns the task that enforces deadlines, so an exception leaves the block in a group, as from any nursery.
    """
    async with trio.open_nursery() as nursery:
        client = Client(options or ClientOptions())
        await nursery.start(client.reaper.run)
        try:
            yield client
        finally:
            client.close()
            nursery.cancel_scope.cancel()


class Client:
    """Calls to any number of origins. Made by `open_client`."""

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._times = Times(
            write_seconds=options.write_seconds, header_seconds=options.header_seconds, idle_seconds=options.idle_seconds
        )
        self._pools: dict[Origin, _Pool] = {}
        self._pools_by_text: dict[str, _Pool] = {}
        self._tls = options.tls or client_tls()
        self._lookups = Lookups()
        self._is_closed = False
        self.reaper = Reaper()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        idempotent: bool = False,
        total_seconds: float | None = None,
        asker: Hashable | None = None,
    ) -> Response:
        """Send one request and read the whole response. Redirects are not followed.

        `asker` is the party that chose the address, which waits for its own name servers only
        (`server.http.client.dial.Lookups`). On cancellation the connection is closed. A pooled connection found dead before
        anything was sent is replaced; one that dies later, before a byte of the response, is replaced once if the request is
        `idempotent`. Raises `NotSent`, `Refused`, `OutcomeUnknown` or `BadResponse`.
        """
        text, target = split(url)
        pool = self._pools_by_text.get(text) or self._add_pool(text)
        data = _request_bytes(method, target, pool.host_header, headers, body)
        bodiless = method == "HEAD"
        total = self._options.total_seconds if total_seconds is None else total_seconds
        ends_at = trio.current_time() + total
        sends_before = ends_at - ANSWER_SHARE * total
        if pool.in_use < self._options.connections_per_origin_max:
            pool.in_use += 1  # nobody waits, or they would have it
        else:
            await self._wait_for_place(pool, sends_before)
        try:
            lost: OutcomeUnknown | None = None
            if connection := _take_idle(pool):
                try:
                    return await connection.exchange(data, bodiless=bodiless, ends_at=ends_at)
                except NotSent:
                    pass
                except OutcomeUnknown as error:
                    if not idempotent or connection.expired or connection.heard:
                        raise
                    lost = error
            return await self._call_anew(
                pool, data, asker, bodiless=bodiless, sends_before=sends_before, ends_at=ends_at, after=lost
            )
        finally:
            pool.give_place_back()

    def close(self) -> None:
        """Close all connections. Calls under way fail, and new ones are refused."""
        self._is_closed = True
        for connection in list(self.reaper.watched):
            connection.expire()

    @property
    def connections(self) -> int:
        """The number of open connections, idle ones included."""
        return len(self.reaper.watched)

    async def _call_anew(
        self,
        pool: _Pool,
        data: bytes,
        asker: Hashable | None,
        *,
        bodiless: bool,
        sends_before: float,
        ends_at: float,
        after: OutcomeUnknown | None,
    ) -> Response:
        """Call on a new connection. If it cannot be sent now, the call lost before, `after`, may still have arrived."""
        try:
            connection = await self._connect(pool, asker, sends_before)
            return await connection.exchange(data, bodiless=bodiless, ends_at=ends_at)
        except NotSent as error:
            if after is None:
                raise
            raise OutcomeUnknown(f"{after}; and once more: {error}") from error

    def _add_pool(self, text: str) -> _Pool:
        """Add the pool of an origin in a new spelling. Raises `NotSent`."""
        origin = parse_origin(text)
        pool = self._pools.get(origin)
        if pool is None:
            if len(self._pools) >= ORIGINS_MAX:
                self._forget_one()
            pool = self._pools[origin] = _Pool(origin, origin.host_header)
        if len(self._pools_by_text) >= 2 * ORIGINS_MAX:
            self._pools_by_text.clear()
        self._pools_by_text[text] = pool
        return pool

    def _forget_one(self) -> None:
        """Forget the oldest unused origin."""
        for origin, pool in self._pools.items():
            if not pool.in_use:
                del self._pools[origin]
                self._pools_by_text.clear()
                while pool.idle:
                    pool.idle.pop().close()
                return

    async def _wait_for_place(self, pool: _Pool, before: float) -> None:
        """Wait for a place among the origin's connections, first come, first served. Raises `NotSent`."""
        seconds = self._options.connect_seconds
        with trio.move_on_at(min(trio.current_time() + seconds, before)) as scope:
            await pool.waiting.park()
        if scope.cancelled_caught:
            raise NotSent(f"no free connection to {pool.origin} within {seconds:g} s")

    async def _connect(self, pool: _Pool, asker: Hashable | None, before: float) -> ClientConnection:
        """Open a connection. Raises `NotSent` for every failure, because nothing has been sent."""
        origin, options = pool.origin, self._options
        with trio.move_on_at(min(trio.current_time() + options.connect_seconds, before)):
            try:
                lookups = self._lookups.of(asker)
                connected = await dial(origin.host, origin.port, check=options.check, lookups=lookups)
                transport: Transport = SocketTransport(connected)
                if origin.is_secure:
                    transport = await TlsTransport.connect(connected, self._tls, host=origin.host)
            except (OSError, ValueError) as error:
                raise NotSent(f"cannot connect to {origin}: {error}") from error
            connection = ClientConnection(
                transport,
                self.reaper,
                pool.idle,
                self._times,
                ResponseParser(bytes_max=options.response_bytes_max, cuts=options.cuts_responses),
            )
            if self._is_closed:
                connection.close()
                raise NotSent("the client is closed")
            if not connection.take():
                raise NotSent(f"{origin} closed the connection or sent data before the request")
            return connection
        raise NotSent(f"no connection to {origin} within {options.connect_seconds:g} s")


def _take_idle(pool: _Pool) -> ClientConnection | None:
    """The most recently used connection, if it is still alive."""
    while pool.idle:
        connection = pool.idle.pop()
        if connection.take():
            return connection
    return None


def _request_bytes(method: str, target: str, host: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """The bytes of the request. Raises `NotSent` for one that could be read as a different request."""
    if method not in METHODS:
        raise NotSent(f"not a method: {method[:200]!r}")
    lines = [f"{name}: {value}\r\n" for name, value in headers if _require_field_name(name)]
    given = "".join(lines)
    if lines and (given.count("\n") != len(lines) or given.count("\r") != len(lines) or "\0" in given):
        raise NotSent("a header contains a line break")
    length = f"content-length: {len(body)}\r\n" if body or method not in ("GET", "HEAD") else ""
    try:
        return f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n{length}{given}\r\n".encode("latin-1") + body
    except UnicodeEncodeError as error:
        raise NotSent(f"a header cannot be written: {error}") from error


@lru_cache(maxsize=1_024)
def _require_field_name(name: str) -> bool:
    """Return True for a field name that callers may give, or raise `NotSent`: framing is the client's."""
    if not _FIELD_NAME.fullmatch(name) or name.lower() in _OURS:
        raise NotSent(f"not a header that a caller may set: {name[:200]!r}")
    return True
