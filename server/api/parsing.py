"""Parsing shared by all requests: bodies, query strings, cursors and the Prefer header."""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, unquote_plus
from uuid import UUID

import msgspec

from core.card_numbers import DIGITS_MIN, contains_card_number
from core.errors import Malformed, NotFound, Unprocessable
from core.events import parse_types
from core.idempotency import parse_key
from server.http.asgi import Scope, header

WAIT_SECONDS_MAX = 25
"""The longest that a request waits, whatever it asks for: less than balancers' usual limit of 30 s, ours included."""

PAGE_DEFAULT = 20
PAGE_MAX = 100
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
LongText = Annotated[str, msgspec.Meta(max_length=1_000)]
T = TypeVar("T")


def read_query(scope: Scope, *allowed: str) -> dict[str, str]:
    """The fields of a query string. Raises `Unprocessable` for one that is unknown or repeated."""
    try:
        pairs = parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError as error:
        raise Unprocessable("the query string cannot be read", code="invalid_query") from error
    fields = dict(pairs)
    unknown = next((name for name in fields if name not in allowed), None)
    if unknown is not None:
        known = f"this path takes {', '.join(allowed) or 'none'}"
        raise Unprocessable(f"unknown parameter {unknown[:40]!r}: {known}", code="invalid_query")
    if len(fields) < len(pairs) or any("\x00" in value for value in fields.values()):
        raise Unprocessable("a parameter is repeated or contains the character U+0000", code="invalid_query")
    return fields


def read_limit(fields: dict[str, str]) -> int:
    """The number of entries of a page."""
    text = fields.get("limit", str(PAGE_DEFAULT))
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= PAGE_MAX and text[0] != "0"):
        raise Unprocessable(f"limit must be between 1 and {PAGE_MAX}", code="invalid_query", path="limit")
    return int(text)


def read_time(fields: dict[str, str], name: str) -> datetime | None:
    """A time in RFC 3339 with its zone. Raises `Unprocessable`."""
    text = fields.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not 1970 <= moment.year <= 9000:
        raise Unprocessable(f"{name} must be a time like 2026-11-21T08:00:00Z", code="invalid_query", path=name)
    return moment


def reply_within_seconds(scope: Scope) -> float | None:
    """Read the Prefer header (RFC 7240): 0 for respond-async, N for wait=N (which wins), None for neither."""
    text = header(scope, b"prefer")
    if text is None:
        return None
    found: float | None = None
    for preference in text.lower().replace(";", ",").split(","):
        name, _, value = (part.strip() for part in preference.partition("="))
        if name == "wait" and value.isascii() and value.isdigit():
            return float(min(int(value[:6]), WAIT_SECONDS_MAX))
        if name == "respond-async":
            found = 0.0
    return found


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes, *, is_plain: bool = False) -> T:
    """Decode a body. Raises `Malformed` if it is not JSON or names a field twice, `Unprocessable` with the field if it does not
    match the type.

    `is_plain`: the type omits its defaults and holds only texts, numbers and flags. Encoded again it then has as many colons as
    the body, unless the body says something twice or needlessly, which is quicker to see than its names.
    """
    try:
        decoded = decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        if path:
            path = path.rstrip("`")
        elif "field `" in message:
            path = "$." + message.partition("field `")[2].rstrip("`")
        raise Unprocessable(message, code="invalid_field", path=path or "$") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is not JSON: {error}", code="malformed_json") from error
    if not is_plain or b"\\" in body or body.count(b":") != msgspec.json.encode(decoded).count(b":"):
        require_unique_names(body)
    return decoded


_STRING = re.compile(rb'"((?:[^"\\]|\\.)*+)"([ \t\r\n]*+:)?')


def require_unique_names(body: bytes) -> None:
    """Raise `Malformed` if an object of a JSON document has a name twice: two readers could take either value (RFC 8259, 4)."""
    names = [name for name, colon in _STRING.findall(body) if colon]
    if len(set(names)) == len(names) and not any(b"\\" in name for name in names):
        return  # unique in the whole document
    json.loads(body, object_pairs_hook=_require_unique)


def _require_unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise Malformed(f"the name {name[:60]!r} is given twice in one object", code="duplicate_name")
        seen.add(name)


def read_key(scope: Scope) -> str:
    """The Idempotency-Key of a request. Raises `Malformed` or `Unprocessable`."""
    key = parse_key(header(scope, b"idempotency-key"))
    if contains_card_number(key):
        raise Unprocessable("the Idempotency-Key looks like a card number", code="card_number_refused")
    return key


def require_harmless_target(scope: Scope) -> None:
    """Raise `Unprocessable` if the path or the query string contains a card number."""
    query: bytes = scope["query_string"]
    if contains_card_number(scope["path"]) or (query and contains_card_number(unquote_plus(query.decode("latin-1")))):
        raise Unprocessable("the URL contains what looks like a card number", code="card_number_refused")


def require_harmless(texts: Iterable[tuple[str, str | None]]) -> None:
    """Raise `Unprocessable` if one of the named texts, percent-encoded or not, contains a card number or a character that cannot
    be stored.
    """
    for name, text in texts:
        if text is None or (len(text) < DIGITS_MIN and "\x00" not in text):
            continue  # the usual case, told cheaply
        if contains_card_number(text) or ("%" in text and contains_card_number(unquote_plus(text))):
            raise Unprocessable(
                "this looks like a card number, which must never be sent here",
                code="card_number_refused",
                path=f"$.{name}",
            )
        if "\x00" in text:
            raise Unprocessable("text must not contain the character U+0000", code="invalid_field", path=f"$.{name}")


SEQ_MAX = 2**63 - 1
Types = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=60)]],
    msgspec.Meta(max_length=32, description="types like payment.succeeded or payment.*; empty for all"),
]


def require_types(types: list[str]) -> None:
    """Raise `Unprocessable` for unknown event types."""
    parse_types(types, path="$.event_types")


def encode_cursor(last: UUID) -> str:
    """The text of `next_cursor`."""
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def decode_cursor(text: str) -> UUID:
    """The id from which a page continues. Raises `Unprocessable`."""
    try:
        return UUID(bytes=base64.urlsafe_b64decode(text.encode("ascii") + b"=="))
    except (ValueError, binascii.Error) as error:
        raise Unprocessable("this cursor is not one that a page returned", code="invalid_query", path="cursor") from error


def decode_seq(text: str) -> int:
    """The number of an event in a path. Raises `NotFound`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise NotFound("no such event")
    return int(text)


def read_seq(fields: dict[str, str], name: str) -> int | None:
    """The number of an event in a query. Raises `Unprocessable`."""
    text = fields.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= SEQ_MAX):
        raise Unprocessable(f"{name} must be the number of an event", code="invalid_query", path=name)
    return int(text)
