"""Passwords and second factors of operators.

Passwords are hashed by Argon2id with the library's parameters (RFC 9106), in threads under a limiter, because a hash takes 64 MiB
and a tenth of a second. Second factors are TOTP (RFC 6238) with intervals of 30 s; recovery codes have 80 random bits and need no
slow hash.
"""

import hashlib
import secrets
from datetime import datetime

import pyotp
import trio
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from core.errors import Unprocessable
from core.operators import PASSWORD_LENGTH_MAX, PASSWORD_LENGTH_MIN

ISSUER = "Florin"
STEP_SECONDS = 30
STEPS_OFF = (-1, 0, 1)
"""The intervals around the current one whose codes count: clocks differ, and people type slowly."""

RECOVERY_CODES = 10
HASHES_AT_ONCE = 2
_hasher = PasswordHasher()
_hashing = trio.CapacityLimiter(HASHES_AT_ONCE)
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
"""Verified in place of a missing operator's, so that names cannot be told by the time."""


def require_password(text: str) -> str:
    """Raise `Unprocessable` for a password that is too short, or so long that hashing it would be an attack."""
    if not PASSWORD_LENGTH_MIN <= len(text) <= PASSWORD_LENGTH_MAX:
        raise Unprocessable(f"a password has {PASSWORD_LENGTH_MIN} to {PASSWORD_LENGTH_MAX} characters")
    return text


async def hash_password(password: str) -> str:
    """The hash to store."""
    return await trio.to_thread.run_sync(_hasher.hash, password, limiter=_hashing)


async def is_password(password: str, hashed: str | None) -> bool:
    """Return whether a password has this hash. None takes as long, and is never right."""
    return await trio.to_thread.run_sync(_verify, password, hashed, limiter=_hashing)


def _verify(password: str, hashed: str | None) -> bool:
    try:
        return _hasher.verify(hashed or _NOBODYS, password[: PASSWORD_LENGTH_MAX + 1]) and hashed is not None
    except (VerificationError, InvalidHashError):
        return False


def totp_secret() -> str:
    """A new TOTP secret, in base32."""
    return pyotp.random_base32()


def totp_uri(secret: str, name: str) -> str:
    """The address by which authenticator apps take a secret."""
    return pyotp.TOTP(secret).provisioning_uri(name=name, issuer_name=ISSUER)


def totp_code(secret: str, now: datetime, *, steps_ahead: int = 0) -> str:
    """The code at a time."""
    return pyotp.TOTP(secret).at(now, counter_offset=steps_ahead)


def step_of_code(secret: str, code: str, now: datetime) -> int | None:
    """The interval to which a code belongs, among those that count now, or None for a wrong one."""
    totp = pyotp.TOTP(secret)
    for off in STEPS_OFF:
        if secrets.compare_digest(totp.at(now, counter_offset=off).encode(), code.encode()):
            return int(now.timestamp()) // STEP_SECONDS + off
    return None


def recovery_codes() -> list[str]:
    """New recovery codes, like `k3vq-7wnd-2hsa-p6xm`."""
    alphabet = "abcdefghjkmnpqrstvwxyz23456789"
    return ["-".join("".join(secrets.choice(alphabet) for _ in range(4)) for _ in range(4)) for _ in range(RECOVERY_CODES)]


def recovery_hash(code: str) -> bytes:
    """The stored hash of a recovery code."""
    return hashlib.sha256(code.strip().lower().encode()).digest()
