"""From a name to a connected socket: resolve, check every address, connect by Happy Eyeballs (RFC 8305).

Invariant: a connection goes only to an address that the check has seen and allowed. The name is not resolved again in between, so
an answer that changes between lookups (DNS rebinding) gains nothing.
"""

import errno
import os
import socket
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import trio

ATTEMPT_SECONDS = 0.25
"""The head start of an address before the next one is tried (RFC 8305, section 5)."""
ADDRESSES_MAX = 8

AddressCheck = Callable[[IPv4Address | IPv6Address], None]
"""Called with every address of a name before any connection; raises `server.http.client.errors.Refused` for a forbidden one.

An IPv4 address mapped into IPv6 arrives as IPv4; the check recognizes other embeddings (NAT64, 6to4) itself.
"""

_Address = tuple[int, Any]


class Lookups:
    """Threads that wait for name servers: a few per asker, so that names that hang delay only their own asker.

    An abandoned thread keeps its place until the system gives it up too.
    """

    def __init__(self, *, of_nobody: int = 32, per_asker: int = 2, total: int = 256) -> None:
        self._of_nobody = trio.CapacityLimiter(of_nobody)
        self._per_asker = per_asker
        self._total = total
        self._limiters: dict[Hashable, trio.CapacityLimiter] = {}

    def of(self, asker: Hashable | None) -> trio.CapacityLimiter:
        """The limiter of one asker. Raises OSError if there are too many askers."""
        if asker is None:
            return self._of_nobody
        limiter = self._limiters.get(asker)
        if limiter is None:
            self._limiters = {one: places for one, places in self._limiters.items() if places.borrowed_tokens}
            if sum(int(places.borrowed_tokens) for places in self._limiters.values()) >= self._total:
                raise OSError(errno.EAGAIN, "too many names are being resolved")
            limiter = self._limiters[asker] = trio.CapacityLimiter(self._per_asker)
        return limiter


async def dial(host: str, port: int, *, check: AddressCheck | None, lookups: trio.CapacityLimiter) -> socket.socket:
    """A connected, non-blocking socket. Raises OSError, or what `check` raises. The caller owns the deadline."""
    addresses = _interleaved(await _find(host, port, lookups))
    if check is not None:
        for _, address in addresses:
            check(_ip_address(address))
    if len(addresses) == 1:
        return await connect(addresses[0])
    return await _race(addresses[:ADDRESSES_MAX])


async def resolve(host: str, port: int, *, lookups: trio.CapacityLimiter) -> list[IPv4Address | IPv6Address]:
    """The addresses of a name, as `dial` would see them. Raises OSError. The caller owns the deadline."""
    return [_ip_address(address) for _, address in await _find(host, port, lookups)]


async def _find(host: str, port: int, lookups: trio.CapacityLimiter) -> list[_Address]:
    return _numeric(host, port) or await trio.to_thread.run_sync(look_up, host, port, abandon_on_cancel=True, limiter=lookups)


def _ip_address(address: Any) -> IPv4Address | IPv6Address:
    return _unmapped(ip_address(address[0].partition("%")[0]))


def _numeric(host: str, port: int) -> list[_Address]:
    """The addresses of a literal address in any notation; empty for a name."""
    try:
        return _addresses(host, port, flags=socket.AI_NUMERICHOST)
    except OSError:
        return []


def look_up(host: str, port: int) -> list[_Address]:
    return _addresses(host, port, flags=0)


def _addresses(host: str, port: int, *, flags: int) -> list[_Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(int(family), address) for family, _, _, _, address in found]


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _interleaved(addresses: Sequence[_Address]) -> list[_Address]:
    """The system's order with alternating address families (RFC 8305, section 4)."""
    if not addresses:
        raise OSError(errno.EADDRNOTAVAIL, "the name has no address")
    first = [one for one in addresses if one[0] == addresses[0][0]]
    other = [one for one in addresses if one[0] != addresses[0][0]]
    turns: list[_Address] = []
    while first or other:
        turns += [first.pop(0)] if first else []
        turns += [other.pop(0)] if other else []
    return turns


async def _race(addresses: Sequence[_Address]) -> socket.socket:
    """The first socket that connects; the others are closed. Raises the first one's error if none does."""
    connected: list[socket.socket] = []
    failures: list[OSError] = []
    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(partial(_attempt, address, failed, connected, failures, nursery.cancel_scope))
                with trio.move_on_after(ATTEMPT_SECONDS):
                    await failed.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        for one in connected:
            one.close()
        raise
    if not connected:
        raise failures[0]
    return connected[0]


async def _attempt(
    address: _Address, failed: trio.Event, connected: list[socket.socket], failures: list[OSError], race: trio.CancelScope
) -> None:
    try:
        one = await connect(address)
    except OSError as error:
        failures.append(error)
        failed.set()
        return
    if connected:
        one.close()
        return
    connected.append(one)
    race.cancel()


async def connect(address: _Address) -> socket.socket:
    family, sockaddr = address
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setblocking(False)  # noqa: FBT003 - the standard library's signature
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            one.connect(sockaddr)
        await trio.lowlevel.wait_writable(one)
        _raise_failure(one)
    except BaseException:
        trio.lowlevel.notify_closing(one)
        one.close()
        raise
    return one


def _raise_failure(one: socket.socket) -> None:
    error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
