"""Writes and reads the hash chain of merchants' ledgers, off the payment path.

Two workers that extend the same chain write the same rows, so no lock is needed: an existing row is kept.
"""

from dataclasses import fields
from datetime import datetime
from typing import Any

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


async def merchants_behind(connection: Connection, *, limit: int) -> list[MerchantId]:
    """Merchants whose chain does not reach the end of their ledger."""
    rows = await connection.query(
        """
        SELECT s.merchant_id FROM merchant_sequences s
         WHERE s.last_ledger_seq > 0 AND NOT EXISTS (
                SELECT FROM ledger_chain c WHERE c.merchant_id = s.merchant_id AND c.seq = s.last_ledger_seq)
         LIMIT $1
        """,
        limit,
    )
    return [MerchantId(row[0]) for row in rows]


class LinkRecord(msgspec.Struct, frozen=True):
    """The number of an entry and its hash."""

    seq: int
    hash: bytes


async def extend(connection: Connection, merchant_id: MerchantId, *, now: datetime, limit: int) -> int:
    """Chain up to `limit` of the merchant's next entries. Returns the number chained."""
    last = await connection.query(
        "SELECT seq, hash FROM ledger_chain WHERE merchant_id = $1 ORDER BY seq DESC LIMIT 1", merchant_id
    )
    seq, head = last[0] if last else (0, GENESIS)
    rows = await connection.query(
        f"SELECT e.seq, {CANONICAL} FROM ledger_entries e WHERE e.merchant_id = $1 AND e.seq > $2 ORDER BY e.seq LIMIT $3",  # noqa: S608 - own columns
        merchant_id,
        seq,
        limit,
    )
    links: list[LinkRecord] = []
    for number, text in rows:
        head = link(head, text)
        links.append(LinkRecord(number, head))
    await connection.run(
        f"""
        INSERT INTO ledger_chain (merchant_id, seq, hash, created_at)
        SELECT $1, seq, decode(hash, 'base64'), $3
          FROM json_to_recordset($2::json) AS h ({json_records.columns(LinkRecord)}) ORDER BY seq
        ON CONFLICT (merchant_id, seq) DO NOTHING
        """,  # noqa: S608 - own columns
        merchant_id,
        json_records.encode(links),
        now,
    )
    return len(rows)


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
