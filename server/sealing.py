"""Secrets at rest: AES-256-GCM with the row's identity as associated data.

A sealed value is `1 | nonce (12 bytes) | ciphertext and tag`; the leading byte is the version of this form. The associated data
(table, row, merchant) ties a value to its own place. The key comes from a file of the operator's and is never in the database or
its backups. Source: NIST SP 800-38D; 96-bit random nonces.
"""

import base64
import binascii
import secrets
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.errors import FlorinError
from server.atomic_files import create_private

_VERSION = b"\x01"
_NONCE_BYTES = 12
_KEY_BYTES = 32
_NOBODY = UUID(int=0)


class SealError(FlorinError):
    """The key file is unusable, or a sealed value was not made with this key for this place."""

    code = "seal_error"


class Sealer:
    """Seals and opens secrets with one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise SealError(f"it has {len(key)} bytes")
        self._cipher = AESGCM(key)
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> "Sealer":
        """Read the key, 32 bytes in base64. Raises `SealError`."""
        try:
            return cls(base64.b64decode(path.read_text().strip(), validate=True))
        except (OSError, binascii.Error, UnicodeDecodeError, SealError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            raise SealError(
                f"cannot use the sealing key {path}: {said}. A key is a file with {_KEY_BYTES} random bytes in base64: "
                "`florin key new FILE` makes one for a new database; for another one restore your copy"
            ) from error

    def receipt_key(self) -> Ed25519PrivateKey:
        """The key that signs receipts. It is derived (RFC 5869), so it is neither stored nor lost apart from the sealing key."""
        derived = HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=None, info=b"florin receipts 1").derive(self._key)
        return Ed25519PrivateKey.from_private_bytes(derived)

    def derive(self, purpose: bytes, row: UUID) -> bytes:
        """32 bytes that only this key derives for this purpose and row."""
        info = b"florin " + purpose + b" " + row.bytes
        return HKDF(algorithm=hashes.SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(self._key)

    def seal(self, secret: str, *, table: str, row: UUID, merchant: UUID = _NOBODY) -> bytes:
        """Encrypt a secret for one place."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret.encode(), _place(table, row, merchant))

    def open(self, sealed: bytes, *, table: str, row: UUID, merchant: UUID = _NOBODY) -> str:
        """Decrypt a secret from its place. Raises `SealError`."""
        nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, ciphertext, _place(table, row, merchant)).decode()
        except (InvalidTag, ValueError) as error:
            raise SealError(f"a secret in {table} was sealed with another key: check that this is the right key file") from error


def create_key_file(path: Path) -> bool:
    """Create a new key, readable by its owner only, unless the file exists. Returns whether it was created."""
    return create_private(path, base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")


def _place(table: str, row: UUID, merchant: UUID) -> bytes:
    return b"|".join((table.encode(), row.bytes, merchant.bytes))
