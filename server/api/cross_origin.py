"""Cross-origin requests (Fetch standard, 3.3): pages of allowed origins may get a ticket of the stream, and read what is public.

Everything else needs a secret key, which has no place in a browser, so no other path says that a page may read it.
"""

from collections.abc import Set

from server.api.routing import Route
from server.http.asgi import Scope, header

MAX_AGE_SECONDS = 7_200
_REQUEST_HEADERS = b"authorization, content-type, idempotency-key, prefer"
_RESPONSE_HEADERS = b"request-id, retry-after"

Headers = list[tuple[bytes, bytes]]


def granted(origins: Set[str], scope: Scope, route: Route | None) -> Headers:
    """The headers that let the page that sent a request read the reply; none if it may not."""
    if route is None or not route.is_cross_origin:
        return []
    origin = header(scope, b"origin")
    varies = (b"vary", b"origin")
    if origin is None or origin.lower() not in origins:
        return [varies]
    return [
        varies,
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _RESPONSE_HEADERS),
    ]


def preflight(origins: Set[str], scope: Scope, route: Route | None) -> Headers:
    """The headers that answer a page's question whether it may send a request of this method."""
    headers = granted(origins, scope, route)
    if route is None or len(headers) < 2:
        return headers
    return [
        *headers,
        (b"access-control-allow-methods", route.method.encode()),
        (b"access-control-allow-headers", _REQUEST_HEADERS),
        (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
    ]
