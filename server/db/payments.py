"""Reading payments, and claiming those that are due."""

from datetime import datetime
from typing import Any
from uuid import UUID

from core.ids import MerchantId, OperationId, PaymentId, PspAccountId
from core.money import Money
from core.payment import Payment, Status
from server.db.connection import Connection

_COLUMNS = """
p.merchant_id, p.id, p.psp_account_id, p.operation_id, p.order_id, p.amount_minor, p.currency, p.status, p.version,
p.expires_at, p.created_at, p.updated_at, p.due_at, p.reference, p.payment_url, p.return_url, p.description,
p.captured_minor, p.late, p.suspended, p.decline_code, p.did_check_again, p.checks
"""


def _payment(row: tuple[Any, ...]) -> Payment:
    return Payment(
        merchant_id=MerchantId(row[0]),
        id=PaymentId(row[1]),
        psp_account_id=PspAccountId(row[2]),
        operation_id=OperationId(row[3]),
        order_id=row[4],
        money=Money(row[5], row[6]),
        status=Status(row[7]),
        version=row[8],
        expires_at=row[9],
        created_at=row[10],
        updated_at=row[11],
        due_at=row[12],
        reference=row[13],
        payment_url=row[14],
        return_url=row[15],
        description=row[16],
        captured_minor=row[17],
        late=row[18],
        suspended=row[19],
        decline_code=row[20],
        did_check_again=row[21],
        checks=row[22],
    )


async def find_payment(connection: Connection, merchant_id: MerchantId, payment_id: PaymentId) -> Payment | None:
    """The merchant's payment; None where there is none or it is another merchant's."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM payment_requests p WHERE p.merchant_id = $1 AND p.id = $2",  # noqa: S608 - own columns
        merchant_id,
        payment_id,
    )
    return _payment(rows[0]) if rows else None


async def find_owner(connection: Connection, payment_id: UUID) -> MerchantId | None:
    """Whose payment it is, for an operator who has only its id: one look into the key of each merchant."""
    rows = await connection.query(
        """
        SELECT m.merchant_id FROM merchants m
         WHERE EXISTS (SELECT FROM payment_requests p WHERE p.merchant_id = m.merchant_id AND p.id = $1)
        """,
        payment_id,
    )
    return MerchantId(rows[0][0]) if rows else None


async def store_reply(connection: Connection, merchant_id: MerchantId, key: str, *, status: int, body: bytes) -> None:
    """Store the first definitive reply of a key; one that is there stays."""
    await connection.run(
        """
        UPDATE idempotency_keys SET reply_status = $3, reply_body = $4, in_flight_until = created_at
         WHERE merchant_id = $1 AND key = $2 AND reply_status IS NULL
        """,
        merchant_id,
        key,
        status,
        body.decode(),
    )


async def postpone(connection: Connection, payment: Payment, *, due_at: datetime) -> None:
    """Set when to look next at a payment that was just looked at in vain, unless it has changed meanwhile.

    Never at once: our clock and the database's may differ.
    """
    await connection.run(
        """
        UPDATE payment_requests SET due_at = greatest($4, now() + interval '5 seconds')
         WHERE merchant_id = $1 AND id = $2 AND version = $3 AND due_at IS NOT NULL
        """,
        payment.merchant_id,
        payment.id,
        payment.version,
        due_at,
    )


async def merchants_with_due_payments(connection: Connection, *, limit: int) -> list[MerchantId]:
    """Whose payments a job has to look at now."""
    rows = await connection.query(
        "SELECT merchant_id FROM payment_requests WHERE due_at <= now() GROUP BY merchant_id ORDER BY min(due_at) LIMIT $1",
        limit,
    )
    return [MerchantId(row[0]) for row in rows]


async def claim_due_payments(
    connection: Connection, merchant_id: MerchantId, *, limit: int, lease_seconds: float
) -> list[Payment]:
    """Take due payments of one merchant for `lease_seconds`; nobody else gets them until then.

    The claim does not count as a change: whoever learns something meanwhile goes on by compare-and-set on the version.
    """
    rows = await connection.query(
        f"""
        WITH due AS (
            SELECT id FROM payment_requests WHERE merchant_id = $1 AND due_at <= now() ORDER BY id LIMIT $2 FOR UPDATE
        )
        UPDATE payment_requests p SET due_at = now() + make_interval(secs => $3::float8)
          FROM due WHERE p.merchant_id = $1 AND p.id = due.id AND p.due_at <= now()
        RETURNING {_COLUMNS}
        """,  # noqa: S608 - own columns
        merchant_id,
        limit,
        lease_seconds,
    )
    return [_payment(row) for row in rows]
