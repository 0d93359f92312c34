"""Addresses of clients behind trusted proxies.

Nothing that a stranger can send is believed: X-Forwarded-* counts only if the connection comes from a configured proxy, and the
client is the last address in X-Forwarded-For that is not itself a configured proxy. PROXY protocol version 2 is off unless
configured; then every connection must begin with it. Source: the PROXY protocol, versions 1 & 2 (HAProxy), section 2.2.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from server.http.server.parser import BadRequest

Networks = tuple[IPv4Network | IPv6Network, ...]

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_HEADER_BYTES = 16
PROXY_BYTES_MAX = 1_024
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
_ADDRESSES = {_TCP4: (socket.AF_INET, 4), _TCP6: (socket.AF_INET6, 16)}


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses and scheme that the application sees. A unix socket's peer has no address."""

    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    scheme: str


def forwarded(addresses: Addresses, headers: Iterable[tuple[bytes, bytes]], trusted: Networks) -> Addresses:
    """The addresses of X-Forwarded-For and X-Forwarded-Proto, if the peer is a trusted proxy."""
    if addresses.client is None or not _is_in(addresses.client[0], trusted):
        return addresses
    chain: list[str] = []
    scheme = addresses.scheme
    for name, value in headers:
        if name == b"x-forwarded-for":
            chain += [part.strip() for part in value.decode("latin-1").split(",")]
        elif name == b"x-forwarded-proto" and value.strip().lower() in (b"http", b"https"):
            scheme = value.strip().lower().decode()
    for text in reversed(chain):
        client = _address(text)
        if client is None:
            break  # whoever wrote this is not known, so nothing before it is believed
        if not any(client in network for network in trusted):
            return replace(addresses, client=(str(client), 0), scheme=scheme)
    return replace(addresses, scheme=scheme)


def proxy_length(head: bytes) -> int:
    """The length of the rest of a PROXY header, from its first `PROXY_HEADER_BYTES`. Raises `BadRequest`."""
    length = int.from_bytes(head[14:16], "big")
    if len(head) < PROXY_HEADER_BYTES or not head.startswith(_SIGNATURE) or length > PROXY_BYTES_MAX:
        raise BadRequest(400, "a PROXY protocol version 2 header was expected")
    return length


def proxied(addresses: Addresses, head: bytes, rest: bytes) -> Addresses:
    """The addresses in a PROXY header; for health checks the proxy's own. Raises `BadRequest`."""
    command, kind = head[12], head[13]
    if command == _LOCAL or (command == _PROXY and kind not in _ADDRESSES):
        return addresses
    family, size = _ADDRESSES.get(kind, (socket.AF_INET, 4))
    if command != _PROXY or len(rest) < 2 * size + 4:
        raise BadRequest(400, "this PROXY protocol header cannot be read")
    client = socket.inet_ntop(family, rest[:size])
    server = socket.inet_ntop(family, rest[size : 2 * size])
    client_port, server_port = (int.from_bytes(rest[at : at + 2], "big") for at in (2 * size, 2 * size + 2))
    return replace(addresses, client=(client, client_port), server=(server, server_port))


def _is_in(text: str, trusted: Networks) -> bool:
    address = _address(text)
    return address is not None and any(address in network for network in trusted)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it, with or without its port, or None. An IPv4 address that is mapped into IPv6 is that."""
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
