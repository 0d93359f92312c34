"""Which addresses on a network a merchant's webhook may lead to: those of the public internet, whatever they are disguised as.

An address that wraps another one (IPv4-mapped IPv6, 6to4, NAT64, Teredo, ISATAP) is judged by what it wraps as well, because a
gateway on the way would unwrap it. Sources: the IANA special-purpose address registries (RFC 6890), RFC 3056, RFC 4380, RFC 5214,
RFC 6052, RFC 8215.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NEVER = (
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv4Network("192.0.0.0/24"),
    IPv4Network("168.63.129.16/32"),  # a cloud's own services, at an address that looks public
    IPv6Network("64:ff9b:1::/48"),  # NAT64 of a network's own, wherever in it the IPv4 address is
    IPv6Network("2001::/23"),
    IPv6Network("3fff::/20"),
    IPv6Network("2001:db8::/32"),
)


def unwrapped(address: Address) -> list[Address]:
    """The address, and those that it carries."""
    if isinstance(address, IPv4Address):
        return [address]
    inner: list[IPv4Address] = []
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        inner.append(address.sixtofour)
    if address.teredo is not None:
        inner += address.teredo
    if address in _NAT64 or int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    if int(address) >> 32 == 0 and int(address) > 1:  # IPv4-compatible, long deprecated
        inner.append(IPv4Address(int(address)))
    return [address, *inner]


def is_public(address: Address) -> bool:
    """Whether it is an address of the public internet, and everything that it carries too."""
    return all(_is_public(one) for one in unwrapped(address))


def is_within(address: Address, networks: Sequence[Network]) -> bool:
    """Whether one of the networks holds it, itself or the IPv4 address that is mapped into it."""
    plain = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
    return any(plain.version == network.version and plain in network for network in networks)


def _is_public(address: Address) -> bool:
    if any(address.version == network.version and address in network for network in _NEVER):
        return False
    if isinstance(address, IPv6Address):
        return address in _NAT64 or (address in _GLOBAL_UNICAST and address.is_global)
    return address.is_global and not address.is_multicast and not address.is_reserved
