"""Idempotency keys: one effect and one reply for any number of requests with one key.

Source: draft-ietf-httpapi-idempotency-key-header. A key is the merchant's; with it go a fingerprint of the request and, once
known, the first definitive reply. A key without a reply is in flight until `in_flight_until`; after that its request has died
and the next one with the same key takes the work up where it stopped.
"""

import hashlib
import string
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec

from core.errors import Malformed
from core.ids import ResourceId

KEY_LENGTH_MAX = 255
_KEY_CHARACTERS = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")


class KeyedOperation(StrEnum):
    """What a request with a key does, and so what its ids are of."""

    CREATE = "create"
    CAPTURE = "capture"
    CANCEL = "cancel"
    REFUND = "refund"
    ENDPOINT = "endpoint"
    BATCH = "batch"


class Reply(msgspec.Struct, frozen=True):
    """A definitive reply: its HTTP status, which the API decides and the flows carry, and its body."""

    status: int
    body: bytes


class StoredKey(msgspec.Struct, frozen=True):
    """What is known of a key that was used before.

    `resource_id` is what the request is about, `made_id` the id that was drawn with the key for what it makes: of which kind
    they are follows from the operation.
    """

    operation: KeyedOperation
    fingerprint: bytes
    resource_id: ResourceId
    in_flight_until: datetime
    reply: Reply | None
    made_id: ResourceId | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """The first definitive reply, to be given again."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key was used with another request."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """The first request with this key has not been answered yet."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The first request died without a reply: go on from how things stand."""

    stored: StoredKey


Decision = Replay | Mismatch | InFlight | Resume


def fingerprint(method: str, path: str, body: bytes) -> bytes:
    """32 bytes that tell one request from another. `body` is the validated request in its canonical encoding."""
    digest = hashlib.sha256()
    for part in (method.encode(), path.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def decide(stored: StoredKey, request_fingerprint: bytes, *, now: datetime) -> Decision:
    """What to do with a request whose key was used before."""
    if stored.fingerprint != request_fingerprint:
        return Mismatch()
    if stored.reply is not None:
        return Replay(stored.reply)
    if now < stored.in_flight_until:
        return InFlight()
    return Resume(stored)


def parse_key(header: str | None) -> str:
    """The key of an `Idempotency-Key` header, bare or as a quoted string.

    Raises `Malformed` where it is missing, empty, too long or not printable ASCII.
    """
    if header is None:
        raise Malformed(
            "this request needs an Idempotency-Key header: a fresh random value for each new operation, the same one for a retry",
            code="idempotency_key_missing",
        )
    text = header.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if not text or len(text) > KEY_LENGTH_MAX or not _KEY_CHARACTERS.issuperset(text):
        raise Malformed(
            f"an Idempotency-Key has 1 to {KEY_LENGTH_MAX} printable ASCII characters", code="idempotency_key_invalid"
        )
    return text
