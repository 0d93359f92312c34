"""Parses a URL into its origin and target: the one reading of it on which every check relies.

It is strict on purpose: an SSRF guard is worthless if two parsers of one URL see two hosts. Everything unusual in RFC 3986
(users, backslashes, zones, spaces, other schemes, names that IDNA changes) is refused.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

from server.http.client.errors import NotSent

URL_LENGTH_MAX = 8_192

_URL = re.compile(r"([A-Za-z]+://[^/?#]*)([/?][!\"$-~]*)?(?:#.*)?")
_ORIGIN = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[^\[\]@:\\%\s]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """A scheme, host and port. The host is an IP address or an ASCII name, in lower case, without brackets."""

    is_secure: bool
    host: str
    port: int

    @property
    def host_header(self) -> str:
        """The value of a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@lru_cache(maxsize=1_024)
def split(url: str) -> tuple[str, str]:
    """Split a URL into its unparsed origin and the target of a request. Raises `NotSent`."""
    match = _URL.fullmatch(url)
    if match is None or len(url) > URL_LENGTH_MAX:
        raise NotSent(f"not an http or https address: {url[:200]!r}")
    origin, target = match.groups("/")
    return origin, target if target[0] == "/" else "/" + target


def parse_origin(text: str) -> Origin:
    """Parse the origin that `split` returned. Raises `NotSent`."""
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise NotSent(f"not an http or https address without a user: {text[:200]!r}")
    is_secure = match[1].lower() == "https"
    port = int(match[3]) if match[3] else (443 if is_secure else 80)
    if not 0 < port <= 65_535:
        raise NotSent(f"not a port: {port}")
    return Origin(is_secure, _host(match[2]), port)


def _host(text: str) -> str:
    try:
        if text.startswith("["):
            return str(IPv6Address(text[1:-1]))
        host = text.encode("idna").decode("ascii").lower()
    except (UnicodeError, AddressValueError) as error:
        raise NotSent(f"not a host: {text[:200]!r}") from error
    if not _NAME.fullmatch(host):
        raise NotSent(f"not a host: {text[:200]!r}")
    return host
