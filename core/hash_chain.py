"""The hash chain over a merchant's ledger: tamper-evidence that anyone can recompute.

Each entry has the merchant's next number; its hash is SHA-256 over the hash before it and the entry's canonical text. Whoever
knows one hash notices any change to any entry before it. Nothing personal is in it.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

GENESIS = bytes(32)
"""The hash before the first entry."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One ledger entry, as it is chained."""

    seq: int
    transfer_id: UUID
    kind: str
    account: str
    payment_id: UUID | None
    currency: str
    amount_minor: int
    created_at: datetime


def canonical(entry: Entry) -> str:
    """The text that is hashed: the fields in order, joined by `|`; the time in microseconds since 1970."""
    microseconds = (entry.created_at - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND
    payment = str(entry.payment_id) if entry.payment_id else ""
    return (
        f"{entry.seq}|{entry.transfer_id}|{entry.kind}|{entry.account}|{payment}"
        f"|{entry.currency}|{entry.amount_minor}|{microseconds}"
    )


def link(previous_hash: bytes, text: str) -> bytes:
    """The hash of an entry, by its canonical text."""
    return hashlib.sha256(previous_hash + text.encode()).digest()
