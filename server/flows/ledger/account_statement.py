"""A merchant's account statement as text, in pieces: CSV (RFC 4180) or one JSON object per line."""

import csv
import io
from collections.abc import AsyncIterator
from enum import StrEnum

import msgspec

from core.ids import PAYMENT, MerchantId, encode_id
from core.money import Money
from server.db.ledger.account_statement import Movement, Period, movements
from server.db.pool import Pool

COLUMNS = ("seq", "created_at", "currency", "wallet", "reason", "amount", "balance", "amount_text", "payment_id", "transfer_id")


class Format(StrEnum):
    """The format of an account statement."""

    CSV = "csv"
    JSONL = "jsonl"


async def statement(pool: Pool, merchant_id: MerchantId, period: Period, form: Format) -> AsyncIterator[bytes]:
    """Yield the account statement of a period, page after page. A CSV begins with its header line, even if nothing follows."""
    if form is Format.CSV:
        yield _csv([COLUMNS])
    async for page in movements(pool, merchant_id, period):
        lines = [_line(movement) for movement in page]
        if form is Format.CSV:
            yield _csv([tuple(line.values()) for line in lines])
        else:
            yield b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _line(movement: Movement) -> dict[str, object]:
    values = {
        "seq": movement.seq,
        "created_at": movement.created_at.isoformat(),
        "currency": movement.currency,
        "wallet": movement.wallet,
        "reason": movement.reason,
        "amount": movement.amount,
        "balance": movement.balance,
        "amount_text": str(Money(movement.amount, movement.currency)),
        "payment_id": encode_id(PAYMENT, movement.payment_id) if movement.payment_id else None,
        "transfer_id": str(movement.transfer_id),
    }
    assert tuple(values) == COLUMNS
    return values


def _csv(rows: list[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
