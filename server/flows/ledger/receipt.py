"""Receipts for payments: the ledger entries, their position in the merchant's hash chain, and our signature.

A receipt is a compact JWS (RFC 7515) with EdDSA over Ed25519 (RFC 8037), so any JOSE library verifies it; `florin receipt verify`
does so offline and also recomputes the hashes of the entries. The key is derived from the sealing key; its public half is
published as a JWK set.
"""

import base64
import binascii
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from core.errors import Conflict, InvalidSignature
from core.hash_chain import Entry, canonical, link
from core.payment import Payment
from server import resources
from server.db.ledger.hash_chain import chained_entries
from server.db.payments.payments import find_payment
from server.flows.contexts import Receipts


class ReceiptEntry(msgspec.Struct, frozen=True):
    """A ledger entry in a receipt, with the previous hash and its own, in hexadecimal."""

    seq: int
    transfer_id: UUID
    kind: str
    account: str
    payment_id: UUID | None
    currency: str
    amount_minor: int
    created_at: datetime
    previous_hash: str
    hash: str


class Receipt(msgspec.Struct, frozen=True):
    """The signed content."""

    issued_at: datetime
    merchant_id: UUID
    payment: dict[str, Any]
    entries: list[ReceiptEntry]


def public_jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """The public key as a JWK."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": _key_id(raw), "x": _encode(raw)}


async def issue(context: Receipts, payment: Payment) -> str:
    """Issue a receipt for a payment that has moved money. Raises `Conflict` if it has not, or its entries are not chained yet."""
    if not payment.captured_minor:
        raise Conflict(f"a payment that is {payment.status} has moved no money, so there is no receipt", code="no_receipt")
    async with context.pool.connection() as connection:
        chained = await chained_entries(connection, payment.merchant_id, payment.id)
        now = await find_payment(connection, payment.merchant_id, payment.id)
    if chained is None or now is None or now.version != payment.version:
        raise Conflict("the receipt is being made: try again in a few seconds", code="receipt_not_ready")
    receipt = Receipt(
        context.now(),
        payment.merchant_id,
        msgspec.to_builtins(resources.Payment.of(payment)),
        [
            ReceiptEntry(
                entry.seq,
                entry.transfer_id,
                entry.kind,
                entry.account,
                entry.payment_id,
                entry.currency,
                entry.amount_minor,
                entry.created_at,
                before.hex(),
                own.hex(),
            )
            for entry, before, own in chained
        ],
    )
    return _sign(context.receipt_key, receipt)


def _sign(key: Ed25519PrivateKey, receipt: Receipt) -> str:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    header = {"alg": "EdDSA", "kid": _key_id(raw), "typ": "florin-receipt+jwt"}
    signed = f"{_encode(msgspec.json.encode(header))}.{_encode(msgspec.json.encode(receipt))}"
    return f"{signed}.{_encode(key.sign(signed.encode()))}"


def read(text: str, keys: list[dict[str, str]]) -> Receipt:
    """Verify a receipt with one of these JWKs: its signature, hashes and links. Raises `InvalidSignature`."""
    if text.count(".") != 2:
        raise InvalidSignature("this is not a Florin receipt: a receipt has three parts with a dot in between")
    try:
        head, body, signature = text.strip().split(".")
        header = msgspec.json.decode(_decode(head), type=dict[str, str])
        if header.get("alg") != "EdDSA":
            raise InvalidSignature("this is not a Florin receipt: it is not signed with EdDSA")
        key = next((key for key in keys if key.get("kid") == header.get("kid")), None)
        if key is None:
            raise InvalidSignature("this receipt was not signed with any of the given keys")
        Ed25519PublicKey.from_public_bytes(_decode(key["x"])).verify(_decode(signature), f"{head}.{body}".encode())
        receipt = msgspec.json.decode(_decode(body), type=Receipt)
    except BadSignature as error:
        raise InvalidSignature("the signature does not match: the receipt was changed") from error
    except (ValueError, KeyError, binascii.Error, msgspec.DecodeError) as error:
        raise InvalidSignature(f"this is not a Florin receipt: {error}") from error
    previous: ReceiptEntry | None = None
    for entry in receipt.entries:
        if link(bytes.fromhex(entry.previous_hash), canonical(_entry(entry))).hex() != entry.hash:
            raise InvalidSignature(f"entry {entry.seq} does not have the hash that it states")
        if previous is not None and previous.seq == entry.seq - 1 and previous.hash != entry.previous_hash:
            raise InvalidSignature(f"entry {entry.seq} does not follow the one before it")
        previous = entry
    return receipt


def _entry(entry: ReceiptEntry) -> Entry:
    return Entry(
        seq=entry.seq,
        transfer_id=entry.transfer_id,
        kind=entry.kind,
        account=entry.account,
        payment_id=entry.payment_id,
        currency=entry.currency,
        amount_minor=entry.amount_minor,
        created_at=entry.created_at.astimezone(UTC),
    )


def _key_id(raw: bytes) -> str:
    return raw[:8].hex()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
