"""Requests, replies and retries without any I/O. Both clients are loops around this module.

A request that moves money or changes an endpoint carries an idempotency key and is repeated with it, so a lost reply never
charges twice; all others can be repeated anyway. A request is repeated where no reply came, where the server asks for it by
`Retry-After`, and after 429, 500, 502, 503 and 504, unless the reply shows that the outcome is known. While an earlier request
with its key is under way, it is repeated for `IN_FLIGHT_SECONDS`, longer than the server holds a key for a dead request.
"""

import json
import random
import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

from florin_client._decoding import decode, decode_json
from florin_client.errors import ApiError, FlorinUnavailable, Unreadable
from florin_client.resources import Payment

T = TypeVar("T")

TRIES_MAX = 4
RETRY_SECONDS = (0.5, 1.0, 2.0)
RETRY_SECONDS_MAX = 30.0
IN_FLIGHT_SECONDS = 60.0
REQUEST_SECONDS = 60.0
CONNECT_SECONDS = 5.0
PAGE_LIMIT = 100
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_PROBLEM_FIELDS = ("detail", "code", "request_id")
_PRINTABLE = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One request. `reply` is the type of its reply: a resource, `str` for a text, or `NoneType` for none."""

    method: str
    path: str
    reply: type[T]
    body: dict[str, Any] | None = None
    idempotency_key: str | None = None
    prefer: str | None = None
    timeout_seconds: float = REQUEST_SECONDS

    def headers(self, api_key: str) -> dict[str, str]:
        """The header fields of the request."""
        optional = {"idempotency-key": self.idempotency_key, "prefer": self.prefer}
        return {
            "authorization": f"Bearer {api_key}",
            "content-type": "application/json",
            "user-agent": "florin-python/1",
            **{name: value for name, value in optional.items() if value is not None},
        }

    def content(self) -> bytes:
        """The body of the request."""
        return json.dumps(self.body, separators=(",", ":")).encode() if self.body is not None else b""


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the request again, with the same key, after this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list, its entries not yet read."""

    data: list[Any]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """The number of deliveries that will be made."""

    deliveries: int


def read(request: Request[T], status: int, retry_after: str | None, content: bytes, *, tries: int, elapsed: float) -> T | Retry:
    """Read a reply. `tries` requests were sent so far, in `elapsed` seconds. Raises `ApiError`, `FlorinUnavailable`."""
    try:
        if 200 <= status < 300:
            return _read_reply(request.reply, content)
        problem = _read_problem(content)
    except Unreadable as error:
        if tries < TRIES_MAX and status in _TRANSIENT:
            return Retry(wait_seconds(tries, retry_after))
        detail = f"the reply with status {status} cannot be read: {error}"
        raise FlorinUnavailable(detail, request.idempotency_key) from error
    if request.method == "DELETE" and status == 404 and tries > 1:
        return cast("T", None)  # an earlier try has done it
    payment = _payment_of(problem)
    if problem["code"] == "idempotency_key_in_flight" and elapsed < IN_FLIGHT_SECONDS:
        return Retry(wait_seconds(tries, retry_after))
    is_known = "refund" in problem or (payment is not None and payment.status != "PENDING")
    if tries < TRIES_MAX and not is_known and (status in _TRANSIENT or retry_after is not None):
        return Retry(wait_seconds(tries, retry_after))
    raise ApiError(status, problem, payment, request.idempotency_key)


def unavailable(request: Request[Any], error: Exception) -> FlorinUnavailable:
    """The exception for a request whose last try failed below HTTP."""
    return FlorinUnavailable(str(error) or type(error).__name__, request.idempotency_key)


def wait_seconds(tries: int, retry_after: str | None = None) -> float:
    """Seconds to wait before the next try: the server's `Retry-After`, or a growing time with jitter."""
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), RETRY_SECONDS_MAX)
    jitter = 0.5 + random.random()  # noqa: S311 - spreads load, guards nothing
    return RETRY_SECONDS[min(tries, len(RETRY_SECONDS)) - 1] * jitter


def base_url(url: str) -> str:
    """The address of a Florin, checked. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or not _PRINTABLE.fullmatch(url):
        raise ValueError(f"expected a URL like https://pay.example, not {url[:100]!r}")
    return url.rstrip("/")


def checked_api_key(api_key: str) -> str:
    """The API key, checked. Raises ValueError, without the key."""
    if not re.fullmatch(r"[!-~]+", api_key):
        raise ValueError("the API key is empty or contains a space, a line break or another character that no key has")
    return api_key


def checked_key(idempotency_key: str | None) -> str:
    """The caller's idempotency key, or a random one. Raises ValueError for one that the API would refuse."""
    if idempotency_key is None:
        return uuid4().hex
    if not _PRINTABLE.fullmatch(idempotency_key):
        raise ValueError(f"an idempotency key has 1 to 255 printable ASCII characters, not {idempotency_key[:50]!r}")
    return idempotency_key


def prefer(wait_seconds: int | None) -> str | None:
    """The `Prefer` header field (RFC 7240): 0 asks for a reply right after the commit, N for one within N seconds."""
    if wait_seconds is None:
        return None
    return "respond-async" if wait_seconds == 0 else f"wait={wait_seconds:d}"


def without_none(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def with_query(path: str, fields: dict[str, Any]) -> str:
    """A path with the fields that are not None as its query string."""
    query = urlencode(without_none(**fields))
    return f"{path}?{query}" if query else path


def segment(text: str) -> str:
    """A text as one segment of a path. Raises ValueError for one that would name another path."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", text) or not text.strip("."):
        raise ValueError(f"expected an identifier or a name, not {text[:50]!r}")
    return text


def _read_reply(kind: type[T], content: bytes) -> T:
    if kind is str:
        try:
            return cast("T", content.decode())
        except ValueError as error:
            raise Unreadable(str(error)) from error
    if kind is type(None):
        return None
    return decode_json(kind, content)


def _read_problem(content: bytes) -> dict[str, Any]:
    problem = decode_json(dict[str, Any], content)
    if not all(isinstance(problem.get(name), str) for name in _PROBLEM_FIELDS):
        raise Unreadable("not a problem document")
    return problem


def _payment_of(problem: dict[str, Any]) -> Payment | None:
    try:
        return decode(Payment, problem["payment"]) if "payment" in problem else None
    except Unreadable:
        return None  # the problem's own fields say what happened
