"""Writes and reads the hash chain of merchants' ledgers, off the payment path.

Two workers that extend the same chain write the same rows, so no lock is needed: an existing row is kept.
"""

from dataclasses import fields
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from core.hash_chain import GENESIS, Entry, link
from core.ids import MerchantId, PaymentId
from server.db import json_records
from server.db.connection import Connection

CANONICAL = """
concat_ws('|', e.seq, e.transfer_id, e.kind, e.account, coalesce(e.payment_id::text, ''), e.currency, e.amount_minor,
          (extract(epoch FROM e.created_at) * 1000000)::bigint)
"""
"""`core.hash_chain.canonical` of the row `e`, in SQL, so that a worker need not build each entry again. A test compares
the two.
"""

_FIELDS = tuple(field.name for field in fields(Entry))
_COLUMNS = ", ".join(f"e.{name}" for name in _FIELDS)


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Make a ledger entry from its columns, in the order of its fields."""
    return Entry(**dict(zip(_FIELDS, row, strict=True)))


class LinkRecord(msgspec.Struct, frozen=True):
    """The hash of a merchant's entry, by its number."""

    merchant_id: UUID
    seq: int
    hash: bytes


_BEHIND = f"""
SELECT b.merchant_id, h.hash, e.seq, e.text
  FROM (SELECT s.merchant_id FROM merchant_sequences s
         WHERE s.last_ledger_seq > 0 AND ($1::uuid IS NULL OR s.merchant_id = $1) AND NOT EXISTS (
               SELECT FROM ledger_chain c WHERE c.merchant_id = s.merchant_id AND c.seq = s.last_ledger_seq)
         LIMIT $2) b
  LEFT JOIN LATERAL (
       SELECT c.seq, c.hash FROM ledger_chain c WHERE c.merchant_id = b.merchant_id ORDER BY c.seq DESC LIMIT 1) h ON true
 CROSS JOIN LATERAL (
       SELECT e.seq, {CANONICAL} AS text FROM ledger_entries e
        WHERE e.merchant_id = b.merchant_id AND e.seq > coalesce(h.seq, 0) ORDER BY e.seq LIMIT $3) e
 ORDER BY b.merchant_id, e.seq
"""  # noqa: S608 - own columns
_EXTEND = f"""
INSERT INTO ledger_chain (merchant_id, seq, hash, created_at)
SELECT merchant_id, seq, decode(hash, 'base64'), $2
  FROM json_to_recordset($1::json) AS h ({json_records.columns(LinkRecord)}) ORDER BY merchant_id, seq
ON CONFLICT (merchant_id, seq) DO NOTHING
"""  # noqa: S608 - own columns


async def extend_chains(
    connection: Connection, *, now: datetime, merchants: int, entries: int, merchant_id: MerchantId | None = None
) -> int:
    """Chain the next entries of merchants whose chain does not reach the end of their ledger: of so many merchants, or of one,
    and so many entries of each. Returns the number chained.
    """
    links: list[LinkRecord] = []
    of: UUID | None = None
    head = GENESIS
    for merchant, last, seq, text in await connection.query(_BEHIND, merchant_id, merchants, entries):
        if merchant != of:
            of, head = merchant, last or GENESIS
        head = link(head, text)
        links.append(LinkRecord(merchant, seq, head))
    if links:
        await connection.run(_EXTEND, json_records.encode(links), now)
    return len(links)


async def chained_entries(
    connection: Connection, merchant_id: MerchantId, payment_id: PaymentId
) -> list[tuple[Entry, bytes, bytes]] | None:
    """The entries of a payment, each with the previous hash and its own, or None if one is not chained yet."""
    rows = await connection.query(
        f"""
        SELECT {_COLUMNS}, p.hash, c.hash
          FROM ledger_entries e
          LEFT JOIN ledger_chain c ON c.merchant_id = e.merchant_id AND c.seq = e.seq
          LEFT JOIN ledger_chain p ON p.merchant_id = e.merchant_id AND p.seq = e.seq - 1
         WHERE e.merchant_id = $1 AND e.payment_id = $2 ORDER BY e.seq
        """,  # noqa: S608 - own columns
        merchant_id,
        payment_id,
    )
    found: list[tuple[Entry, bytes, bytes]] = []
    for *columns, previous_hash, own_hash in rows:
        if own_hash is None:
            return None
        found.append((entry_of(tuple(columns)), bytes(previous_hash or GENESIS), bytes(own_hash)))
    return found
