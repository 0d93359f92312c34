"""Reads the log of a payment, one row per change."""

from datetime import datetime
from typing import Annotated

import msgspec

from core.ids import MerchantId, PaymentId
from server.db.connection import Connection

LOGS_MAX = 1_000


class Log(msgspec.Struct, frozen=True):
    """One change of a payment, as merchants see it."""

    version: int
    source: str
    kind: str
    from_status: str | None
    to_status: str
    code: str | None
    created_at: Annotated[datetime, msgspec.Meta(tz=True)]


async def list_logs(connection: Connection, merchant_id: MerchantId, payment_id: PaymentId) -> list[Log]:
    """The changes of a payment, oldest first, at most `LOGS_MAX`."""
    rows = await connection.query(
        """
        SELECT version, source, kind, from_status, to_status, code, created_at
          FROM payment_logs WHERE merchant_id = $1 AND payment_id = $2 ORDER BY version LIMIT $3
        """,
        merchant_id,
        payment_id,
        LOGS_MAX,
    )
    return [Log(*row) for row in rows]
