"""Writes transfers that do not come from a payment's change, in the caller's transaction: numbered, posted and added to the
wallets.
"""

from datetime import datetime

import msgspec

from core.ids import MerchantId, PaymentId
from core.ledger import Transfer, WalletKind
from server.db import json_records
from server.db.connection import Connection


class PostingRecord(msgspec.Struct, frozen=True):
    """One ledger entry of a change's transfer."""

    account: str
    currency: str
    amount_minor: int


def posting_records(transfer: Transfer) -> list[PostingRecord]:
    """The entries of a transfer, in order."""
    return [PostingRecord(one.account, one.money.currency, one.money.amount_minor) for one in transfer.postings]


async def post(
    connection: Connection, merchant_id: MerchantId, transfer: Transfer, *, now: datetime, payment_id: PaymentId | None = None
) -> None:
    """Write a transfer. The caller has locked the merchant's balances (`server.db.payments.balance_locked.lock_balances`)."""
    await connection.run(
        f"""
        WITH numbered AS (
            INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq) VALUES ($1, 0, $5)
            ON CONFLICT (merchant_id) DO UPDATE SET last_ledger_seq = s.last_ledger_seq + excluded.last_ledger_seq
            RETURNING last_ledger_seq
        ), entries AS (
            INSERT INTO ledger_entries (
                merchant_id, seq, transfer_id, kind, account, currency, amount_minor, created_at, payment_id)
            SELECT $1, n.last_ledger_seq - $5 + t.number, $2, $3, t.account, t.currency, t.amount_minor, $6, $8
              FROM numbered n,
                   ROWS FROM (json_to_recordset($4::json) AS ({json_records.columns(PostingRecord)}))
                   WITH ORDINALITY AS t (account, currency, amount_minor, number)
            RETURNING account, currency, amount_minor
        )
        INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
        SELECT $1, currency, account, amount_minor, $6 FROM entries WHERE account = ANY ($7::text[]) ORDER BY currency, account
        ON CONFLICT (merchant_id, currency, kind)
        DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
        """,  # noqa: S608 - own columns
        merchant_id,
        transfer.id,
        transfer.kind.value,
        json_records.encode(posting_records(transfer)),
        len(transfer.postings),
        now,
        [kind.value for kind in WalletKind],
        payment_id,
    )
