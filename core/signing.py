"""Signed messages: the HMAC dialects that Florin signs with and verifies.

- Standard Webhooks (github.com/standard-webhooks/standard-webhooks, spec 1.0): what merchants receive.
- Timestamped, `t=...,v1=...` as Stripe signs: what the sandbox PSP sends.

Invariants: comparison takes constant time; a timestamp outside the tolerance is rejected, so a recorded message cannot be
replayed later; several secrets may be valid during a rotation.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence

from core.errors import InvalidSignature

TOLERANCE_SECONDS = 300
_STANDARD_PREFIX = "whsec_"


def standard_secret(key: bytes) -> str:
    """The text form of a Standard Webhooks secret; `key` has 24 to 64 random bytes."""
    return _STANDARD_PREFIX + base64.b64encode(key).decode()


def sign_standard(secrets: Iterable[str], *, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: a signature for each secret, separated by spaces."""
    return " ".join(f"v1,{_standard_digest(secret, message_id, timestamp, body)}" for secret in secrets)


def verify_standard(secrets: Iterable[str], *, message_id: str, timestamp: str, signature: str, body: bytes, now: float) -> None:
    """Verify that one of the signatures was made with one of the secrets, recently. Raises `InvalidSignature`."""
    moment = _fresh(timestamp, now)
    given = [value for version, _, value in (part.partition(",") for part in signature.split(" ")) if version == "v1"]
    _require_match(given, [_standard_digest(secret, message_id, moment, body) for secret in secrets])


def sign_timestamped(secret: str, *, timestamp: int, body: bytes) -> str:
    """The value of a `t=...,v1=...` signature header."""
    return f"t={timestamp},v1={_timestamped_digest(secret, timestamp, body)}"


def verify_timestamped(secrets: Iterable[str], *, header: str, body: bytes, now: float) -> None:
    """Verify that the header was made with one of the secrets, recently. Raises `InvalidSignature`."""
    fields = [part.partition("=")[::2] for part in header.split(",")]
    moment = _fresh(next((value for name, value in fields if name == "t"), ""), now)
    given = [value for name, value in fields if name == "v1"]
    _require_match(given, [_timestamped_digest(secret, moment, body) for secret in secrets])


def _standard_digest(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(_STANDARD_PREFIX), validate=True)
    except binascii.Error as error:
        raise InvalidSignature("the secret is not whsec_ followed by base64") from error
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def _timestamped_digest(secret: str, timestamp: int, body: bytes) -> str:
    return hmac.digest(secret.encode(), b"%d.%s" % (timestamp, body), hashlib.sha256).hex()


def _fresh(timestamp: str, now: float) -> int:
    if not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        raise InvalidSignature("the signature has no timestamp")
    moment = int(timestamp)
    if abs(now - moment) > TOLERANCE_SECONDS:
        raise InvalidSignature(f"the timestamp is more than {TOLERANCE_SECONDS} seconds away from now")
    return moment


def _require_match(given: Sequence[str], expected: Sequence[str]) -> None:
    bounded = given[:8]
    matches = [hmac.compare_digest(one.encode(), other.encode()) for one in bounded for other in expected]
    if not any(matches):
        raise InvalidSignature("no signature matches")
