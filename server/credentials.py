"""API keys and stream tickets: drawn, hashed and parsed here only."""

import hashlib
import secrets
from typing import Literal
from uuid import UUID

from core.ids import MerchantId

_SECRET_BYTES = 32
_PREFIX = "fl"
_TICKET_PREFIX = "flst"


def api_key(mode: Literal["test", "live"], merchant_id: MerchantId, drawn: bytes | None = None) -> str:
    """A new API key: mode, merchant and 256 bits, random ones unless given. It is shown once and stored as a hash."""
    return f"{_PREFIX}_{mode}_{merchant_id.hex}{(drawn or secrets.token_bytes(_SECRET_BYTES)).hex()}"


def stream_ticket(merchant_id: MerchantId) -> str:
    """A new ticket for the stream: merchant and 256 random bits. It is stored as a hash and valid once."""
    return f"{_TICKET_PREFIX}_{merchant_id.hex}{secrets.token_hex(_SECRET_BYTES)}"


def merchant_of_ticket(text: str) -> MerchantId | None:
    """The merchant in a well-formed ticket; None for anything else."""
    prefix, _, digits = text.partition("_")
    return _merchant_of(digits) if prefix == _TICKET_PREFIX else None


def key_hash(key: str) -> bytes:
    """The stored hash of an API key. Its 256 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).digest()


def merchant_of_key(key: str) -> MerchantId | None:
    """The merchant in a well-formed API key; None for anything else."""
    prefix, _, rest = key.partition("_")
    mode, _, digits = rest.partition("_")
    return _merchant_of(digits) if prefix == _PREFIX and mode in ("test", "live") else None


def _merchant_of(digits: str) -> MerchantId | None:
    if len(digits) != 32 + 2 * _SECRET_BYTES or not digits.isascii():
        return None
    try:
        int(digits, 16)
        return MerchantId(UUID(hex=digits[:32]))
    except ValueError:
        return None
