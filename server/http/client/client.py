"""An HTTP/1.1 client on bare trio: a keep-alive pool per origin, llhttp for the responses.

Its errors say what is known (`server.http.client.errors`), because with money that is what matters. Invariants: a request is
never sent twice unless the caller says that it is idempotent; once any of it may have been sent no error says `NotSent`;
waiting, connections, responses and time are bounded.
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
"""Of a call's time that must be left when it is sent: what is sent too late is an outcome that nobody knows, for nothing."""

_OURS = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The bounds of a client.

    `connections_per_origin_max`: in use and idle together. `connect_seconds`: how long a call may wait for a place among them,
    and how long for a connection, before anything of it is sent; `write_seconds`: for each part of the request to be taken;
    `header_seconds`: from the end of the request to the end of the response's head; `total_seconds`: for the whole call,
    waiting and connecting included, unless the call says otherwise; `idle_seconds`: how long a connection waits to be used again.
    `response_bytes_max`: of a whole response, head included; one that is larger fails, or its body is cut off where
    `cuts_responses` says so. `check` sees every address before it is connected to, and may raise `Refused`. `tls` is for peers
    whose certificates the system does not know.
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
    """An origin, how many calls to it are under way, those that wait for a place, and idle connections, the latest last."""

    origin: Origin
    host_header: str
    in_use: int = 0
    waiting: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    idle: deque[ClientConnection] = field(default_factory=deque)

    def give_place_back(self) -> None:
        """To whoever has waited longest, if anyone does."""
        if self.waiting:
            self.waiting.unpark()
        else:
            self.in_use -= 1


@asynccontextmanager
async def open_client(options: ClientOptions | None = None) -> AsyncIterator["Client"]:
    """A client, for as long as the block runs. Calls that are under way at its end fail as `OutcomeUnknown`.

    It owns the task that enforces deadlines, so what leaves the block leaves in an exception group, as from any nursery.
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

        `asker`: who has chosen the address, and waits for his own name servers only (`server.http.client.dial.Lookups`).
        On cancellation the connection is closed. A pooled connection that is found to be dead before anything was sent is
        replaced; one that dies later, before a byte of the response, is replaced once where the request is `idempotent`.
        Raises `NotSent`, `Refused`, `OutcomeUnknown` or `BadResponse`.
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
        """Close all connections; calls under way fail, and new ones are refused."""
        self._is_closed = True
        for connection in list(self.reaper.watched):
            connection.expire()

    @property
    def connections(self) -> int:
        """How many connections are open, idle ones included."""
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
        """Call on a new connection. What cannot be sent now may have arrived by the call that was lost before, `after` it."""
        try:
            connection = await self._connect(pool, asker, sends_before)
            return await connection.exchange(data, bodiless=bodiless, ends_at=ends_at)
        except NotSent as error:
            if after is None:
                raise
            raise OutcomeUnknown(f"{after}; and once more: {error}") from error

    def _add_pool(self, text: str) -> _Pool:
        """The pool of an origin in a new spelling. Raises `NotSent`."""
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
        """Make room: forget the oldest origin that is at rest."""
        for origin, pool in self._pools.items():
            if not pool.in_use:
                del self._pools[origin]
                self._pools_by_text.clear()
                while pool.idle:
                    pool.idle.pop().close()
                return

    async def _wait_for_place(self, pool: _Pool, before: float) -> None:
        """A place among the origin's connections, first come first served. Raises `NotSent`."""
        seconds = self._options.connect_seconds
        with trio.move_on_at(min(trio.current_time() + seconds, before)) as scope:
            await pool.waiting.park()
        if scope.cancelled_caught:
            raise NotSent(f"no free connection to {pool.origin} within {seconds:g} s")

    async def _connect(self, pool: _Pool, asker: Hashable | None, before: float) -> ClientConnection:
        """A new connection. Whatever goes wrong, nothing has been sent: raises `NotSent`."""
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
                raise NotSent(f"{origin} closed the connection, or spoke, before it was asked")
            return connection
        raise NotSent(f"no connection to {origin} within {options.connect_seconds:g} s")


def _take_idle(pool: _Pool) -> ClientConnection | None:
    """The connection that was used last, if it still lives."""
    while pool.idle:
        connection = pool.idle.pop()
        if connection.take():
            return connection
    return None


def _request_bytes(method: str, target: str, host: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """The whole request. Raises `NotSent` for what could be read as another request than was meant."""
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
    """True, or raises `NotSent`: what frames a message is ours to say."""
    if not _FIELD_NAME.fullmatch(name) or name.lower() in _OURS:
        raise NotSent(f"not a header that a caller may give: {name[:200]!r}")
    return True
