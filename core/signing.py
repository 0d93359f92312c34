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


def sign_standard(keys: Sequence["StandardKey"], *, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: a signature for each key, separated by spaces."""
    return " ".join(["v1," + key.sign(message_id=message_id, timestamp=timestamp, body=body) for key in keys])


def verify_standard(secrets: Iterable[str], *, message_id: str, timestamp: str, signature: str, body: bytes, now: float) -> None:
    """Verify that one of the signatures was made with one of the secrets, recently. Raises `InvalidSignature`."""
    moment = _fresh(timestamp, now)
    given = [value for version, _, value in (part.partition(",") for part in signature.split(" ")) if version == "v1"]
    _require_match(given, [StandardKey(one).sign(message_id=message_id, timestamp=moment, body=body) for one in secrets])


def sign_timestamped(secret: str, *, timestamp: int, body: bytes) -> str:
    """The value of a `t=...,v1=...` signature header."""
    return f"t={timestamp},v1={_timestamped_digest(secret, timestamp, body)}"


def verify_timestamped(secrets: Iterable[str], *, header: str, body: bytes, now: float) -> None:
    """Verify that the header was made with one of the secrets, recently. Raises `InvalidSignature`."""
    fields = [part.partition("=")[::2] for part in header.split(",")]
    moment = _fresh(next((value for name, value in fields if name == "t"), ""), now)
    given = [value for name, value in fields if name == "v1"]
    _require_match(given, [_timestamped_digest(secret, moment, body) for secret in secrets])


class StandardKey:
    """A secret of Standard Webhooks, ready to sign with. Raises `InvalidSignature` for one that is none."""

    __slots__ = ("_started",)

    def __init__(self, secret: str) -> None:
        try:
            key = base64.b64decode(secret.removeprefix(_STANDARD_PREFIX), validate=True)
        except binascii.Error as error:
            raise InvalidSignature("the secret is not whsec_ followed by base64") from error
        self._started = hmac.new(key, digestmod=hashlib.sha256)

    def sign(self, *, message_id: str, timestamp: int, body: bytes) -> str:
        """The signature of a message, in base64."""
        mac = self._started.copy()  # preparing a key costs more than signing with it
        mac.update(b"%s.%d.%s" % (message_id.encode(), timestamp, body))
        return binascii.b2a_base64(mac.digest(), newline=False).decode()


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
