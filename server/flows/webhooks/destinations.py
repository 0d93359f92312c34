"""The allowed destinations of webhooks: the public internet over https, and in development networks that the settings name.

The merchant chooses the address, so without this check Florin could be made to call what only Florin can reach (SSRF). The rule
is checked when an endpoint is registered, for a clear answer, and for each address that is connected to, which is the protection:
a name may resolve differently by then. Redirects are not followed.
"""

from collections.abc import Sequence
from ipaddress import ip_address

import trio

from core.addresses import Address, Network, is_public, is_within
from core.errors import Overloaded, Unprocessable
from core.ids import MerchantId
from server.http.client.dial import Lookups, resolve
from server.http.client.errors import NotSent, Refused
from server.http.client.url import parse_origin, split

URL_LENGTH_MAX = 2_000
PORTS = (443, 8443)
LOOKUP_SECONDS = 5.0
_NOT_PUBLIC = "{} does not resolve to an address on the public internet"


class Destinations:
    """The rule. `networks` may be called in addition to the public internet."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)
        self._lookups = Lookups()

    def check(self, address: Address) -> None:
        """Check an address for https. Raises `Refused`."""
        if not is_public(address):
            self.check_private(address)

    def check_private(self, address: Address) -> None:
        """Check an address for http. Raises `Refused`."""
        if not is_within(address, self._networks):
            raise Refused("the name resolves to an address that is not on the public internet")

    async def require(self, url: str, *, is_live: bool, of: MerchantId | None = None, path: str = "$.url") -> None:
        """Raise `Unprocessable`, with the reason, if a URL cannot be an endpoint of this merchant; `Overloaded`."""

        def refuse(why: str) -> Unprocessable:
            return Unprocessable(why, code="invalid_webhook_url", path=path)

        if len(url) > URL_LENGTH_MAX or not url.isascii() or not url.isprintable() or "#" in url:
            raise refuse(f"expected a printable ASCII URL of at most {URL_LENGTH_MAX} characters, without a fragment")
        try:
            origin = parse_origin(split(url)[0])
        except NotSent as error:
            raise refuse(str(error)) from error
        if _is_disguised(origin.host):
            raise refuse("write an IP address in its usual form")
        if not origin.is_secure and (is_live or not self._networks):
            raise refuse("a webhook URL must begin with https://")
        try:
            lookups = self._lookups.of(of)
            if not lookups.available_tokens:
                raise Overloaded("your other host names are still being resolved")
            with trio.fail_after(LOOKUP_SECONDS):
                addresses = await resolve(origin.host, origin.port, lookups=lookups)
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            raise refuse(_NOT_PUBLIC.format(origin.host)) from error
        is_private = all(is_within(one, self._networks) for one in addresses)
        if not is_private and not all(is_public(one) for one in addresses):
            raise refuse(_NOT_PUBLIC.format(origin.host))
        if not is_private and not origin.is_secure:
            raise refuse("a webhook URL must begin with https://")
        if not is_private and origin.port not in PORTS:
            raise refuse(f"a webhook URL must have port {' or '.join(map(str, PORTS))}")


def _is_disguised(host: str) -> bool:
    """Return whether the host ends in a number, so that some software reads it as an IPv4 address, without being one in the usual
    form.
    """
    last = host.rstrip(".").rpartition(".")[2]
    is_number = last.isdigit() or (last[:2] in ("0x", "0X") and all(one in "0123456789abcdef" for one in last[2:].lower()))
    if ":" in host or not is_number:
        return False
    try:
        return str(ip_address(host)) != host
    except ValueError:
        return True
