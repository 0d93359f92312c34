"""Transfers that belong to no payment, in the caller's transaction: numbered, posted, and added to the wallets."""

from datetime import datetime

from core.ids import MerchantId
from core.ledger import Transfer, WalletKind
from server.db.array_literals import plain, quoted
from server.db.connection import Connection


async def post(connection: Connection, merchant_id: MerchantId, transfer: Transfer, *, now: datetime) -> None:
    """Write a transfer. The caller has locked the merchant's balances (`server.db.payments.balance_locked.lock_balances`)."""
    await connection.run(
        """
        WITH numbered AS (
            INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq) VALUES ($1, 0, $7)
            ON CONFLICT (merchant_id) DO UPDATE SET last_ledger_seq = s.last_ledger_seq + excluded.last_ledger_seq
            RETURNING last_ledger_seq
        ), entries AS (
            INSERT INTO ledger_entries (merchant_id, seq, transfer_id, kind, account, currency, amount_minor, created_at)
            SELECT $1, n.last_ledger_seq - $7 + t.number, $2, $3, t.account, t.currency, t.amount_minor, $8
              FROM numbered n,
                   unnest($4::text[], $5::text[], $6::bigint[]) WITH ORDINALITY AS t (account, currency, amount_minor, number)
            RETURNING account, currency, amount_minor
        )
        INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
        SELECT $1, currency, account, amount_minor, $8 FROM entries WHERE account = ANY ($9::text[]) ORDER BY currency, account
        ON CONFLICT (merchant_id, currency, kind)
        DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
        """,
        merchant_id,
        transfer.id,
        transfer.kind.value,
        plain(posting.account for posting in transfer.postings),
        quoted(posting.money.currency for posting in transfer.postings),
        plain(posting.money.amount_minor for posting in transfer.postings),
        len(transfer.postings),
        now,
        plain(WalletKind),
    )
