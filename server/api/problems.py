"""Failures as `application/problem+json` (RFC 9457). The HTTP status of a failure is decided here only."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

import msgspec

from core.card_numbers import contains_card_number
from core.errors import (
    BodyTooLate,
    Conflict,
    DatabaseUnavailable,
    FlorinError,
    Forbidden,
    InvalidItems,
    InvalidMoney,
    InvalidSignature,
    Malformed,
    NotFound,
    Overloaded,
    PspBusy,
    PspError,
    PspOutcomeUnknown,
    RateLimited,
    RequestError,
    TokenUnknown,
    TooLarge,
    Unauthenticated,
    Unprocessable,
    UnsupportedEncoding,
)
from core.ids import REQUEST, encode_id
from server.http.asgi import Send, respond
from server.http.refusal import Refusal, Rendered
from server.uuid7 import uuid7

_STATUS_BY_ERROR: dict[type[FlorinError], int] = {
    Malformed: 400,
    InvalidSignature: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    BodyTooLate: 408,
    TooLarge: 413,
    UnsupportedEncoding: 415,
    Unprocessable: 422,
    InvalidMoney: 422,
    RateLimited: 429,
    Overloaded: 503,
    DatabaseUnavailable: 503,
    TokenUnknown: 422,
    PspOutcomeUnknown: 504,
    PspBusy: 503,
    PspError: 502,
}
_TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    402: "The payment was declined",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "The time is over",
    409: "Conflict",
    413: "Body too large",
    415: "Encoding not supported",
    422: "Unprocessable request",
    426: "Upgrade needed",
    429: "Too many requests",
    500: "Internal error",
    502: "The payment provider could not take the request",
    503: "Try again later",
    504: "The payment provider did not answer in time",
}
CONTENT_TYPE = b"application/problem+json"
_DIGIT = re.compile(r"\d")
FAILED_DETAIL = "an internal error occurred; quote the request id when you ask for help"

_PASSING = frozenset({"idempotency_key_in_flight", "being_opened", "receipt_not_ready"})
"""Conflicts that resolve themselves."""


def request_id_header(request_id: str) -> tuple[bytes, bytes]:
    """The header in which every response names its request."""
    return (b"request-id", request_id.encode())


def status_of(error: FlorinError) -> int:
    """The HTTP status of a failure."""
    return next((_STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _STATUS_BY_ERROR), 500)


def retry_after_seconds(error: FlorinError) -> int | None:
    """The time after which another try makes sense, if that is known."""
    if isinstance(error, PspBusy | RateLimited | Overloaded):
        return max(math.ceil(error.retry_after_seconds), 1)
    return 1 if isinstance(error, DatabaseUnavailable) or error.code in _PASSING else None


def retry_after_header(error: FlorinError) -> list[tuple[bytes, bytes]]:
    """The Retry-After header of a failure, if another try makes sense."""
    seconds = retry_after_seconds(error)
    return [(b"retry-after", b"%d" % seconds)] if seconds is not None else []


def problem(status: int, *, code: str, detail: str, request_id: str) -> dict[str, object]:
    """A problem document without extension members."""
    return {
        "type": f"urn:florin:problem:{code}",
        "title": _TITLES.get(status, "Problem"),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def wire_problem(refusal: Refusal) -> Rendered:
    """The problem document of a reply that the HTTP server makes by itself."""
    match refusal:
        case Refusal.OVERLOADED:
            status, detail = 503, "the server cannot take another request at the moment; nothing was done: repeat it shortly"
        case Refusal.FAILED:
            status, detail = 500, FAILED_DETAIL
        case Refusal.DENIED:
            status, detail = 403, "this path is not a websocket"
        case Refusal.LATE:
            status, detail = 408, "the body did not arrive in time; nothing was done: repeat the request"
        case _:
            assert_never(refusal)
    request_id = encode_id(REQUEST, uuid7())
    document = problem(status, code=refusal.value, detail=detail, request_id=request_id)
    headers = [request_id_header(request_id), *([(b"retry-after", b"1")] if status == 503 else [])]
    return Rendered(status, msgspec.json.encode(document), CONTENT_TYPE, headers, request_id)


async def send_problem(
    send: Send,
    status: int,
    *,
    code: str,
    detail: str,
    request_id: str,
    path: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
    **more: object,
) -> None:
    """Send a problem. `more` are extension members."""
    document = {**problem(status, code=code, detail=_masked(detail), request_id=request_id), **more}
    if path:
        document["path"] = _masked(path)
    await respond(send, status, msgspec.json.encode(document), content_type=CONTENT_TYPE, headers=headers)


def _masked(text: str) -> str:
    """A text that may repeat what was sent, without the digits of what looks like a card number (promise:no-card-data)."""
    return _DIGIT.sub("*", text) if contains_card_number(text) else text


async def send_error(send: Send, error: FlorinError, *, request_id: str) -> None:
    """Send the problem of a failure."""
    status = status_of(error)
    wait = retry_after_seconds(error)
    headers = [(b"retry-after", b"%d" % wait)] if wait is not None else []
    if isinstance(error, RateLimited):
        headers += error.headers
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="florin"'))
    code, detail = error.code, str(error)
    path = error.path if isinstance(error, RequestError) else None
    more = {}
    if isinstance(error, InvalidItems):
        errors = [replace(one, path=_masked(one.path), detail=_masked(one.detail)) for one in error.errors]
        more = {"errors": errors, "more_errors": error.more}
    if status == 500:
        code, detail = FlorinError.code, FAILED_DETAIL
    if isinstance(error, DatabaseUnavailable):
        detail = "the database cannot be reached; nothing was acknowledged: repeat the request with the same key"
    await send_problem(send, status, code=code, detail=detail, request_id=request_id, path=path, headers=headers, **more)
