"""Verifies webhooks, which Florin signs as Standard Webhooks 1.0 says (github.com/standard-webhooks/standard-webhooks)."""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from florin_client._decoding import decode_json
from florin_client.errors import InvalidSignature, Unreadable
from florin_client.resources import Event

TOLERANCE_SECONDS = 300
SECRET_BYTES_MIN = 16
_SIGNATURES_MAX = 8


class Headers(Protocol):
    """Header fields in any case: a dict, or what your web framework has."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Pairs of name and value."""
        ...


def verify_webhook(secret: str | Sequence[str], headers: Headers, body: bytes | str, *, now: float | None = None) -> Event:
    """Return the event of a request to your endpoint, after checking its signature and age.

    `body` is the raw body, before any parsing. `secret` is the endpoint's `whsec_…`, or several of them while you rotate it.
    `now` is seconds since 1970, the clock's unless given. Raises `InvalidSignature` if no signature matches or the timestamp is
    more than five minutes away, and ValueError for a secret that cannot be one. An event may be delivered more than once, with
    the same `id`.
    """
    keys = [_key(one) for one in ([secret] if isinstance(secret, str) else secret)]
    raw = body.encode() if isinstance(body, str) else bytes(body)
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signature = (given[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise InvalidSignature(f"the header field {error.args[0]} is missing") from error
    signed = b"%s.%d.%s" % (message_id.encode(errors="replace"), _recent(timestamp, time.time() if now is None else now), raw)
    expected = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)) for key in keys]
    signatures = [value for version, _, value in (part.partition(",") for part in signature.split(" ")) if version == "v1"]
    matches = [
        hmac.compare_digest(one.encode(errors="replace"), other) for one in signatures[:_SIGNATURES_MAX] for other in expected
    ]
    if not any(matches):
        raise InvalidSignature("no signature matches")
    try:
        return decode_json(Event, raw)
    except Unreadable as error:
        raise InvalidSignature(f"the body is not an event: {error}") from error


def _recent(timestamp: str, now: float) -> int:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise InvalidSignature("webhook-timestamp is not a number of seconds")
    moment = int(timestamp)
    if abs(now - moment) > TOLERANCE_SECONDS:
        raise InvalidSignature(f"webhook-timestamp is more than {TOLERANCE_SECONDS} seconds away from now")
    return moment


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the webhook secret is not whsec_ followed by base64") from error
    if len(key) < SECRET_BYTES_MIN:
        raise ValueError("the webhook secret is empty or too short to be one")
    return key
