"""A request on its way to its handler, and the table that finds the handler.

A route describes itself completely: path, method, input and replies. The OpenAPI document and the `Allow` header come from the
table that routes requests, so they cannot disagree.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import msgspec

from core.api_keys import KeyScope, Network, require_scope
from core.ids import REQUEST, encode_id
from server.api.parsing import PAGE_DEFAULT, PAGE_MAX, SEQ_MAX, WAIT_SECONDS_MAX
from server.db.merchants.merchants import Merchant
from server.http.asgi import Receive, Scope, Send

BODY_BYTES_MAX = 65_536
_UNRESERVED = re.compile(r"%(?:2[DdEe]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])")
"""A letter, digit, hyphen, dot, underscore or tilde that is percent-encoded."""


class Caller(msgspec.Struct, frozen=True):
    """The merchant that calls, by one of its keys."""

    merchant: Merchant
    key_id: UUID
    key_requests_per_second_max: int | None = None
    scopes: frozenset[KeyScope] = frozenset({KeyScope.ALL})
    networks: tuple[Network, ...] = ()
    expires_at: datetime | None = None

    def require(self, scope: KeyScope) -> None:
        """Raise `Forbidden` if the key lacks a scope."""
        require_scope(self.scopes, scope)


class Call(msgspec.Struct):
    """A request whose body was read. `caller` is None only for public routes. What the request creates gets its `id`."""

    id: UUID
    scope: Scope
    body: bytes
    send: Send
    caller: Caller | None = None
    receive: Receive | None = None
    """After the body it only reports that the client has disconnected."""

    @property
    def request_id(self) -> str:
        """The public form of the request's id."""
        return encode_id(REQUEST, self.id)

    async def until_gone(self) -> None:
        """Wait until the client has disconnected."""
        assert self.receive is not None
        while (await self.receive())["type"] != "http.disconnect":
            pass

    @property
    def merchant(self) -> Merchant:
        """The merchant that calls."""
        assert self.caller is not None
        return self.caller.merchant


@dataclass(frozen=True, slots=True)
class Parameter:
    """A field of the query string, or a header. `schema` is JSON Schema."""

    name: str
    schema: Mapping[str, Any]
    description: str
    is_header: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A method of a path. `replies` has, by status, a type, the name of a media type, or None for no body.

    `reads_body`: the handler reads the body itself, after authentication, because it may be large. `tells_lines`: a client that
    accepts `application/x-ndjson` gets that. `body` is the type that validates the request's body. `needs_key`: an
    Idempotency-Key is required. `scope` is what a restricted key needs. `is_cross_origin`: pages of allowed origins may use it.
    """

    method: str
    path: str
    handle: Callable[..., Awaitable[None]]
    tag: str
    summary: str
    replies: Mapping[int, Any]
    body: Any = None
    parameters: Sequence[Parameter] = ()
    problems: Sequence[int] = ()
    needs_key: bool = False
    body_bytes_max: int = BODY_BYTES_MAX
    reads_body: bool = False
    tells_lines: bool = False
    scope: KeyScope = KeyScope.READ
    is_public: bool = False
    is_cross_origin: bool = False
    is_hidden: bool = False

    @property
    def takes_query(self) -> bool:
        """Return whether the path takes a query string."""
        return any(not one.is_header for one in self.parameters)


class Router:
    """Finds routes by path, segment by segment.

    A path has exactly one form: a proxy in front that allows some paths only must see what is served (RFC 9110, 17.1). So empty
    segments do not count as absent, percent-encoding is undone in variable segments only, never makes a separator, and is refused
    where nothing needs it (RFC 3986, 2.3).
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._root: dict[str, Any] = {}
        for route in routes:
            node = self._root
            for segment in route.path.strip("/").split("/"):
                node = node.setdefault("{}" if segment.startswith("{") else segment, {})
            node.setdefault("/", {})[route.method] = route

    def find(self, raw_path: bytes) -> tuple[Mapping[str, Route], list[str]]:
        """The routes of a path as it was sent, by method, and its variable segments. Empty if the path is unknown."""
        node = self._root
        given: list[str] = []
        for segment in raw_path.decode("latin-1")[1:].split("/"):
            following = node.get(segment) if segment != "{}" else None
            if following is None:
                following = node.get("{}")
                if following is None or not segment:
                    return {}, given
                if "%" in segment:
                    needless = _UNRESERVED.search(segment) is not None
                    segment = unquote(segment)
                    if needless or "/" in segment:
                        return {}, given
                given.append(segment)
            node = following
        return node.get("/", {}), given


def allowed(routes: Mapping[str, Route]) -> bytes:
    """The value of an Allow header."""
    methods = sorted({*routes, "OPTIONS", *(["HEAD"] if "GET" in routes else [])})
    return ", ".join(methods).encode()


TIME = {"type": "string", "format": "date-time"}
SEQ = {"type": "integer", "minimum": 0, "maximum": SEQ_MAX}
LIMIT = Parameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
    "the maximum number of entries in the page",
)
CURSOR = Parameter("cursor", {"type": "string"}, "`next_cursor` of the previous page")
TYPES = Parameter("types", {"type": "string", "example": "payment.*"}, "only these event types, separated by commas")
AFTER = Parameter("after", SEQ, "`seq` of the last event that you have")
EPOCH = Parameter("epoch", {"type": "string", "format": "uuid"}, "the `epoch` that came with it")
PREFER = Parameter(
    "Prefer",
    {"type": "string", "example": "wait=10"},
    f"`wait=N`: wait for the outcome, for N seconds at most (up to {WAIT_SECONDS_MAX}); `respond-async`: reply 202 at once",
    is_header=True,
)


PAYMENTS, BATCHES, WEBHOOKS, EVENTS, KEYS = "Payments", "Batches", "Webhooks", "Events", "API keys"
SCOPE_BY_TAG = {
    PAYMENTS: KeyScope.PAYMENTS_WRITE,
    BATCHES: KeyScope.BATCHES_WRITE,
    WEBHOOKS: KeyScope.WEBHOOKS_WRITE,
    EVENTS: KeyScope.READ,
    KEYS: KeyScope.ALL,
}
"""The scope of what changes something. A reader of events has to keep its position and to open the stream."""


def post(path: str, handle: Any, tag: str, summary: str, replies: dict[int, Any], **more: Any) -> Route:
    """A route that changes something, with an idempotency key, and the scope of its tag, by default."""
    more = {"needs_key": True, "scope": SCOPE_BY_TAG[tag], **more}
    problems = (400, 409, 422, *more.pop("problems", ()))
    return Route(method="POST", path=path, handle=handle, tag=tag, summary=summary, replies=replies, problems=problems, **more)


def get(path: str, handle: Any, tag: str, summary: str, reply: Any, **more: Any) -> Route:
    """A route that only reads."""
    problems = tuple(more.pop("problems", ())) + ((422,) if more.get("parameters") else ())
    replies = reply if isinstance(reply, dict) else {200: reply}
    return Route(method="GET", path=path, handle=handle, tag=tag, summary=summary, replies=replies, problems=problems, **more)
