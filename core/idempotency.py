"""Idempotency keys: one effect and one reply for any number of requests with the same key.

Source: draft-ietf-httpapi-idempotency-key-header. A key belongs to a merchant. A fingerprint of the request and, once known, its
first definitive reply are stored with it. A key without a reply is in flight while the worker that owns it is alive, until
`in_flight_until` at the latest. After that its request is considered dead, and the next one with the same key continues where it
stopped.
"""

import hashlib
import re
import string
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec

from core.errors import Malformed
from core.ids import ResourceId

KEY_LENGTH_MAX = 255
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_KEY_CHARACTERS = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")


class KeyedOperation(StrEnum):
    """The operation of a request with a key. It determines the kinds of the key's ids."""

    CREATE = "create"
    CAPTURE = "capture"
    CANCEL = "cancel"
    REFUND = "refund"
    ENDPOINT = "endpoint"
    BATCH = "batch"


class Reply(msgspec.Struct, frozen=True):
    """A definitive reply: the body, and the HTTP status that the API has decided."""

    status: int
    body: bytes


class StoredKey(msgspec.Struct, frozen=True):
    """A key that was used before. Whether it `is_in_flight` is decided where it is read, by the database's clock.

    `resource_id` is the object of the request, `made_id` the id drawn with the key for what the request creates. The operation
    determines their kinds.
    """

    operation: KeyedOperation
    fingerprint: bytes
    resource_id: ResourceId
    in_flight_until: datetime
    is_in_flight: bool
    reply: Reply | None
    made_id: ResourceId | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """Give the first definitive reply again."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key was used for a different request."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """The first request with this key has not been answered yet."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The first request died without a reply: continue from the current state."""

    stored: StoredKey


Decision = Replay | Mismatch | InFlight | Resume


def fingerprint(method: str, path: str, body: bytes) -> bytes:
    """32 bytes that identify a request. `body` is the validated request in its canonical encoding."""
    digest = hashlib.sha256()
    for part in (method.encode(), path.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def decide(stored: StoredKey, request_fingerprint: bytes) -> Decision:
    """Decide about a request whose key was used before."""
    if stored.fingerprint != request_fingerprint:
        return Mismatch()
    if stored.reply is not None:
        return Replay(stored.reply)
    if stored.is_in_flight:
        return InFlight()
    return Resume(stored)


def parse_key(header: str | None) -> str:
    """Parse an `Idempotency-Key` header, bare or as a string of RFC 8941, section 3.3.3.

    Raises `Malformed` if it is missing, empty, too long, not printable ASCII, or begins like a string and is none.
    """
    if header is None:
        raise Malformed(
            "this request needs an Idempotency-Key header: a new random value for each operation, the same value for its retries",
            code="idempotency_key_missing",
        )
    text = header.strip()
    if text.startswith('"'):
        quoted = _QUOTED.fullmatch(text)
        text = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted is not None else ""
    if not text or len(text) > KEY_LENGTH_MAX or not _KEY_CHARACTERS.issuperset(text):
        raise Malformed(
            f"an Idempotency-Key has 1 to {KEY_LENGTH_MAX} printable ASCII characters", code="idempotency_key_invalid"
        )
    return text
