"""Decides which network addresses a merchant's webhook may lead to: public ones only, in whatever notation.

The table is our own because `ipaddress.is_global` differs between patch releases of Python (CVE-2024-4032 is one reason), and a
guard must give the same answer on all of them. An address that wraps another one (IPv4-mapped IPv6, 6to4, NAT64, Teredo, ISATAP)
is judged by the inner address as well, because a gateway on the way may unwrap it.

Sources: the IANA special-purpose address registries (RFC 6890) as of 2026-11, RFC 3056, RFC 4380, RFC 5214, RFC 6052, RFC 8215.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NOT_PUBLIC_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network (RFC 791)
            "10.0.0.0/8",  # private (RFC 1918)
            "100.64.0.0/10",  # shared by carriers' NAT (RFC 6598)
            "127.0.0.0/8",  # loopback (RFC 1122)
            "168.63.129.16/32",  # a cloud's metadata service, at an address that looks public
            "169.254.0.0/16",  # link-local (RFC 3927), where clouds keep their credentials
            "172.16.0.0/12",  # private (RFC 1918)
            "192.0.0.0/24",  # protocol assignments (RFC 6890); the few global ones in it are no web servers
            "192.0.2.0/24",  # documentation (RFC 5737)
            "192.88.99.0/24",  # 6to4 relays (RFC 7526)
            "192.168.0.0/16",  # private (RFC 1918)
            "198.18.0.0/15",  # benchmarks (RFC 2544)
            "198.51.100.0/24",  # documentation (RFC 5737)
            "203.0.113.0/24",  # documentation (RFC 5737)
            "224.0.0.0/4",  # multicast (RFC 5771)
            "240.0.0.0/4",  # reserved, and limited broadcast (RFC 1112, RFC 919)
        ),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that IANA has allocated for the public internet (RFC 4291). Everything outside it is not public."""

_NOT_PUBLIC_V6 = (
    IPv6Network("2001::/23"),  # protocol assignments, Teredo among them (RFC 2928)
    IPv6Network("2001:db8::/32"),  # documentation (RFC 3849)
    IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)
_NAT64 = IPv6Network("64:ff9b::/96")
"""The well-known prefix: public if the IPv4 address in it is. A network's own NAT64 (64:ff9b:1::/48) never is (RFC 8215)."""

_MAPPED, _TO_IPV4, _TEREDO = 0xFFFF, 0x2002, 0x2001_0000
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
_IPV4_BITS = 0xFFFF_FFFF


def unwrapped(address: Address) -> list[Address]:
    """Return the address, followed by the addresses embedded in it."""
    if isinstance(address, IPv4Address):
        return [address]
    number = int(address)
    if number >> 32 == _MAPPED:
        return [IPv4Address(number & _IPV4_BITS)]
    inner: list[int] = []
    if number >> 112 == _TO_IPV4:
        inner.append(number >> 80)
    if number >> 96 == _TEREDO:
        inner += [number >> 64, ~number]  # the server's address and the client's
    if address in _NAT64 or number >> 32 & _IPV4_BITS in _ISATAP:
        inner.append(number)
    if number >> 32 == 0 and number > 1:  # IPv4-compatible, long deprecated
        inner.append(number)
    return [address, *(IPv4Address(one & _IPV4_BITS) for one in inner)]


def is_public(address: Address) -> bool:
    """Return whether the address and every address embedded in it are public."""
    return all(_is_public(one) for one in unwrapped(address))


def is_within(address: Address, networks: Sequence[Network]) -> bool:
    """Return whether one of the networks contains the address, or the IPv4 address mapped into it."""
    plain = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
    return any(plain.version == network.version and plain in network for network in networks)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if address in _NAT64:
        return True
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_V6)
