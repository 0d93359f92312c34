"""API keys of merchants: what each may do, from where and how long.

A key without `all` is restricted: it may do what its scopes name, and nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from uuid import UUID

from core.errors import Forbidden, Unauthenticated, Unprocessable
from core.nearest import unknown

WARN_BEFORE = timedelta(days=7)
"""The time before a key's end at which its merchant is told."""

NETWORKS_MAX = 50
NAME_LENGTH_MAX = 100
Network = IPv4Network | IPv6Network


class KeyScope(StrEnum):
    """A permission of a key. ALL stands for all of them, READ is for whatever changes nothing."""

    ALL = "all"
    READ = "read"
    PAYMENTS_WRITE = "payments:write"
    REFUNDS_WRITE = "refunds:write"
    PAYOUTS_WRITE = "payouts:write"
    WEBHOOKS_WRITE = "webhooks:write"
    BATCHES_WRITE = "batches:write"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key as it can be shown: only a hash of its secret is stored. `last_used_at` is exact to the minute.

    `replaced_by` is the key that a rotation has made.
    """

    id: UUID
    hint: str
    created_at: datetime
    revoked_at: datetime | None = None
    name: str = ""
    scopes: tuple[KeyScope, ...] = (KeyScope.ALL,)
    networks: tuple[str, ...] = ()
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    replaced_by: UUID | None = None
    requests_per_second_max: int | None = None


def parse_scopes(names: Iterable[str], *, path: str) -> tuple[KeyScope, ...]:
    """The scopes of a key, in the order of `KeyScope`. Raises `Unprocessable`."""
    found = set()
    for name in names:
        try:
            found.add(KeyScope(name.strip()))
        except ValueError as error:
            detail = unknown("scope", name[:60], [one.value for one in KeyScope])
            raise Unprocessable(detail, code="invalid_scope", path=path) from error
    if not found:
        raise Unprocessable("a key has at least one scope", code="invalid_scope", path=path)
    return (KeyScope.ALL,) if KeyScope.ALL in found else tuple(one for one in KeyScope if one in found)


def parse_key_networks(texts: Iterable[str], *, path: str) -> tuple[str, ...]:
    """The networks from which a key may be used. Raises `Unprocessable`."""
    found = []
    for text in texts:
        try:
            network = ip_network(text.strip())
            mapped = getattr(network.network_address, "ipv4_mapped", None) if network.prefixlen >= 96 else None
            found.append(str(network if mapped is None else IPv4Network((mapped, network.prefixlen - 96))))
        except ValueError as error:
            raise Unprocessable(f"{text[:60]!r} is not a network: write it like 203.0.113.0/24", path=path) from error
    if len(found) > NETWORKS_MAX:
        raise Unprocessable(f"a key may have at most {NETWORKS_MAX} networks", path=path)
    return tuple(dict.fromkeys(found))


def require_scope(scopes: frozenset[KeyScope], needed: KeyScope) -> None:
    """Raise `Forbidden` with the scope that a key lacks."""
    if needed not in scopes and KeyScope.ALL not in scopes:
        raise Forbidden(f"this API key lacks the scope {needed}", code="scope_missing")


def require_usable(networks: tuple[Network, ...], expires_at: datetime | None, *, client: str | None, now: datetime) -> None:
    """Raise `Unauthenticated` for a key that has expired, or `Forbidden` for one that may not be used from there."""
    if expires_at is not None and expires_at <= now:
        raise Unauthenticated("this API key has expired", code="api_key_expired")
    if networks and not any(_address(client) in network for network in networks):
        raise Forbidden("this API key may not be used from your network", code="network_not_allowed")


def _address(client: str | None) -> IPv4Address | IPv6Address:
    """The address of a client; the unspecified one for a client without any, as behind a unix socket."""
    try:
        found = ip_address(client or "::")
    except ValueError:
        found = ip_address("::")
    mapped: IPv4Address | None = getattr(found, "ipv4_mapped", None)
    return mapped or found
