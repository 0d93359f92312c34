"""The hash chain over a merchant's ledger: tamper evidence that anyone can recompute.

Each entry has the merchant's next number. Its hash is SHA-256 over the previous hash and the entry's canonical text, so anyone
who knows one hash notices a change to any earlier entry. The text contains nothing personal.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

GENESIS = bytes(32)
"""The hash that precedes the first entry."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A ledger entry as the chain sees it."""

    seq: int
    transfer_id: UUID
    kind: str
    account: str
    payment_id: UUID | None
    currency: str
    amount_minor: int
    created_at: datetime


def canonical(entry: Entry) -> str:
    """The text that is hashed: the fields in order, joined by `|`, with the time in microseconds since 1970."""
    microseconds = (entry.created_at - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND
    payment = str(entry.payment_id) if entry.payment_id else ""
    return (
        f"{entry.seq}|{entry.transfer_id}|{entry.kind}|{entry.account}|{payment}"
        f"|{entry.currency}|{entry.amount_minor}|{microseconds}"
    )


def link(previous_hash: bytes, text: str) -> bytes:
    """The hash of an entry, from the previous hash and its canonical text."""
    return hashlib.sha256(previous_hash + text.encode()).digest()
