"""Parsing shared by all requests: bodies, query strings, cursors and the Prefer header."""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeVar, get_args
from urllib.parse import parse_qsl, unquote_plus
from uuid import UUID

import msgspec

from core.card_numbers import DIGITS_MIN, contains_card_number
from core.errors import Malformed, NotFound, Unprocessable
from core.events import parse_types
from core.idempotency import parse_key
from core.nearest import unknown
from server.http.asgi import Scope, header

WAIT_SECONDS_MAX = 60
"""The longest that a request waits, whatever it asks for: less than the limit of `florin haproxy`'s configuration."""

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
    for name in fields:
        if name not in allowed and not (name == "event_types" and "types" in allowed):
            raise Unprocessable(unknown("parameter", name, allowed), code="invalid_query")
    if len(fields) < len(pairs) or any("\x00" in value for value in fields.values()):
        raise Unprocessable("a parameter is repeated or contains the character U+0000", code="invalid_query")
    return fields


def read_limit(fields: dict[str, str]) -> int:
    """The number of entries of a page."""
    limit = read_number(fields.get("limit", str(PAGE_DEFAULT)))
    if limit is None or not 1 <= limit <= PAGE_MAX:
        raise Unprocessable(f"limit must be between 1 and {PAGE_MAX}", code="invalid_query", path="limit")
    return limit


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
        raise _invalid_field(str(error), decoder.type, body) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is not JSON: {error}", code="malformed_json") from error
    except RecursionError as error:
        raise _too_deep() from error
    if not is_plain or b"\\" in body or body.count(b":") != msgspec.json.encode(decoded).count(b":"):
        require_unique_names(body)
    return decoded


def _invalid_field(said: str, kind: Any, body: bytes) -> Unprocessable:
    """The problem that msgspec has found, with what would be right."""
    message, _, path = said.partition(" - at `")
    path = path.rstrip("`")
    name = message.partition("field `")[2].rstrip("`")
    if message.startswith("Object contains unknown field") and not path:
        message = unknown("field", name, _fields_of(kind, body))
    elif message.startswith("Expected `int`") and path == "$.amount":
        message = f"expected an integer number of minor units, 1999 for 19.99{_instead_of(body, 'amount')}"
    return Unprocessable(message, code="invalid_field", path=path or (f"$.{name}" if name else "$"))


def _fields_of(kind: Any, body: bytes) -> list[str]:
    """The fields that an object may have; in a union of structs, those of the struct that its tag names."""
    structs = get_args(kind) or (kind,)
    if len(structs) > 1:
        tag = structs[0].__struct_config__.tag_field
        wanted = _members(body).get(tag)
        structs = tuple(one for one in structs if one.__struct_config__.tag == wanted)
        return [tag, *(field for one in structs for field in one.__struct_encode_fields__)]
    fields = list(structs[0].__struct_encode_fields__)
    return [one for one in fields if one != "types" or "event_types" not in fields]


def _instead_of(body: bytes, name: str) -> str:
    """The value that a field was given, if it may be repeated."""
    given = _members(body).get(name)
    if given is None:
        return ""
    text = repr(given) if isinstance(given, str) else msgspec.json.encode(given).decode()
    return "" if contains_card_number(text) else f", instead of {text[:40]}"


def _members(body: bytes) -> dict[str, Any]:
    """The members of an object; empty for what cannot be decoded as a whole."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):  # of which DecodeError and UnicodeDecodeError are two
        return {}


def canonical(decoded: object) -> bytes:
    """The encoding of a decoded request for its fingerprint: members of objects in an order of their own (RFC 8785, 3.2.3)."""
    return msgspec.json.encode(decoded, order="deterministic")


def if_given(value: T | msgspec.UnsetType) -> T | None:
    """The value of a field that may be left out, or None if it was."""
    return None if isinstance(value, msgspec.UnsetType) else value


_STRING = re.compile(rb'"((?:[^"\\]|\\.)*+)"([ \t\r\n]*+:)?')


def require_unique_names(body: bytes) -> None:
    """Raise `Malformed` if an object of a JSON document has a name twice: two readers could take either value (RFC 8259, 4)."""
    names = [name for name, colon in _STRING.findall(body) if colon]
    if len(set(names)) == len(names) and not any(b"\\" in name for name in names):
        return  # unique in the whole document
    try:
        json.loads(body, object_pairs_hook=_require_unique, parse_int=str)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise Malformed("the document is not JSON in UTF-8", code="malformed_json") from error


def _too_deep() -> Malformed:
    return Malformed("the document is nested too deeply", code="malformed_json")


def _require_unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise Malformed(f"the name {name[:60]!r} is given twice in one object", code="duplicate_name")
        seen.add(name)


def read_key(scope: Scope) -> str:
    """The Idempotency-Key of a request. Raises `Malformed` or `Unprocessable`."""
    given = [value for name, value in scope["headers"] if name == b"idempotency-key"]
    if len(given) > 1:
        raise Malformed("the Idempotency-Key is given more than once: send one", code="idempotency_key_invalid")
    key = parse_key(given[0].decode("latin-1") if given else None)
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


UNDOCUMENTED = "x-undocumented"
"""Marks a field that is accepted and not described: another name of one that is."""

SEQ_MAX = 2**63 - 1
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
Types = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=60)]],
    msgspec.Meta(max_length=32, description="types like payment.succeeded or payment.*; empty for all"),
]


TypesToo = Annotated[list[str] | msgspec.UnsetType, msgspec.Meta(extra_json_schema={UNDOCUMENTED: True})]
"""`event_types` under the name that it has in queries."""


class _Typed(Protocol):
    """A body that selects event types."""

    @property
    def event_types(self) -> Any: ...

    @property
    def types(self) -> Any: ...


Typed = TypeVar("Typed", bound=_Typed)


def with_types(body: Typed) -> Typed:
    """The body with its event types under one name. Raises `Unprocessable` if it has both names, or for unknown types."""
    types = if_given(body.types)
    if types is None:
        if not isinstance(body.event_types, msgspec.UnsetType):
            parse_types(body.event_types, path="$.event_types")
        return body
    if body.event_types:
        raise Unprocessable("types is another name of event_types: give one of them", code="invalid_field", path="$.types")
    parse_types(types, path="$.types")
    return msgspec.structs.replace(body, event_types=types, types=msgspec.UNSET)  # type: ignore[type-var]  # all are structs


def encode_cursor(last: UUID) -> str:
    """The text of `next_cursor`."""
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def decode_cursor(text: str) -> UUID:
    """The id from which a page continues. Raises `Unprocessable`."""
    try:
        last = UUID(bytes=base64.b64decode(text.encode("ascii") + b"==", altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        last = None
    if last is None or encode_cursor(last) != text:
        raise Unprocessable("this cursor is not one that a page returned", code="invalid_query", path="cursor")
    return last


def decode_seq(text: str) -> int:
    """The number of an event in a path. Raises `NotFound`."""
    seq = read_number(text)
    if seq is None:
        raise NotFound("no such event")
    return seq


def read_number(text: str) -> int | None:
    """A number up to `SEQ_MAX` as it is written out, without a sign or leading zeros, or None if the text is none."""
    if _NUMBER.fullmatch(text) is None or int(text) > SEQ_MAX:
        return None
    return int(text)


def read_seq(fields: dict[str, str], name: str) -> int | None:
    """The number of an event in a query. Raises `Unprocessable`."""
    text = fields.get(name)
    if text is None:
        return None
    seq = read_number(text)
    if seq is None:
        raise Unprocessable(f"{name} must be the number of an event", code="invalid_query", path=name)
    return seq
