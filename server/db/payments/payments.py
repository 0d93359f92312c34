"""Reading payments, listing them, and claiming those that are due."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from core.evidence import Risk
from core.ids import MerchantId, OperationId, PaymentId, PspAccountId
from core.money import Money
from core.payment import NO_TERMS, Capture, OperationKind, Payment, PendingOperation, Status, Terms
from server.db.connection import Connection

_COLUMNS = """
p.merchant_id, p.id, p.psp_account_id, p.operation_id, p.order_id, p.amount_minor, p.currency, p.status, p.version,
p.expires_at, p.created_at, p.updated_at, p.due_at, p.reference, p.payment_url, p.return_url, p.description,
p.captured_minor, p.late, p.suspended, p.decline_code, p.did_check_again, p.checks, p.refunded_minor, p.disputed_minor,
p.lost_minor, p.capture_before, p.pending_id, p.pending_kind, p.pending_minor, p.pending_since, p.is_warned, p.release_at,
p.is_given_back, p.pending_taken_minor, p.fee_returned_minor,
p.capture, p.is_sync, p.live_order_id, p.statement_descriptor, p.metadata, p.fee_basis_points, p.fee_fixed_minor,
p.refunds_fee, p.settlement_delay_seconds, p.refunds_late, p.risk
"""

_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode


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
        refunded_minor=row[23],
        disputed_minor=row[24],
        lost_minor=row[25],
        capture_before=row[26],
        pending=_pending(*row[27:31]) if row[27] else None,
        is_warned=row[31],
        release_at=row[32],
        is_given_back=row[33],
        pending_taken_minor=row[34],
        fee_returned_minor=row[35],
        capture=Capture(row[36]),
        is_sync=row[37],
        is_exclusive=row[38] is not None,
        statement_descriptor=row[39],
        metadata=_decode_metadata(row[40]) if row[40] else {},
        terms=_terms(*row[41:46]),
        risk=Risk(row[46]) if row[46] else None,
    )


def _pending(operation_id: UUID, kind: str, amount_minor: int | None, since: datetime) -> PendingOperation:
    return PendingOperation(id=OperationId(operation_id), kind=OperationKind(kind), amount_minor=amount_minor, since=since)


def _terms(basis_points: int, fixed_minor: int, refunds_fee: bool, delay_seconds: int, refunds_late: bool) -> Terms:  # noqa: FBT001 - columns
    if not (basis_points or fixed_minor or refunds_fee or delay_seconds or refunds_late):
        return NO_TERMS
    return Terms(
        fee_basis_points=basis_points,
        fee_fixed_minor=fixed_minor,
        refunds_fee=refunds_fee,
        settlement_delay_seconds=delay_seconds,
        refunds_late=refunds_late,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which payments to list. Times bound `created_at`; None is any."""

    status: Status | None = None
    order_id: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None


SCAN_MAX = 5_000
"""How many payments one page may look through for a status, so that a page never costs more than that."""


async def list_payments(
    connection: Connection, merchant_id: MerchantId, wanted: Filter, *, after: UUID | None, limit: int
) -> tuple[list[Payment], UUID | None]:
    """A page of payments, newest first, and where the next page goes on, or None at the end.

    Ids are UUIDv7 and so sort by the time they were made. A page may hold fewer than `limit`, even none, and have a next one.
    """
    rows = await connection.query(
        f"""
        WITH page AS (
            SELECT id FROM payment_requests
             WHERE merchant_id = $1 AND id < $2 AND id >= $3 AND ($4::text IS NULL OR order_id = $4)
             ORDER BY id DESC LIMIT $5
        ), matching AS (
            SELECT p.id FROM page JOIN payment_requests p ON p.merchant_id = $1 AND p.id = page.id
             WHERE $6::text IS NULL OR p.status = $6 ORDER BY p.id DESC LIMIT $7
        )
        SELECT {_COLUMNS}, (SELECT min(id::text) FROM page), (SELECT count(*) FROM page)
          FROM (SELECT 1) AS one LEFT JOIN matching ON true
          LEFT JOIN payment_requests p ON p.merchant_id = $1 AND p.id = matching.id
         ORDER BY p.id DESC
        """,  # noqa: S608 - own columns
        merchant_id,
        min(after or _LAST, _first_id_at(wanted.created_before) if wanted.created_before else _LAST),
        _first_id_at(wanted.created_from) if wanted.created_from else UUID(int=0),
        wanted.order_id,
        SCAN_MAX if wanted.status else limit + 1,
        wanted.status.value if wanted.status else None,
        limit + 1,
    )
    payments = [_payment(row) for row in rows if row[1] is not None]
    if len(payments) > limit:
        return payments[:limit], payments[limit - 1].id
    last, looked_at = rows[0][-2:]
    return payments, UUID(last) if wanted.status and looked_at == SCAN_MAX else None


_LAST = UUID(int=2**128 - 1)


def _first_id_at(moment: datetime) -> UUID:
    """The smallest UUIDv7 of that millisecond (RFC 9562)."""
    milliseconds = max(int(moment.timestamp() * 1_000), 0)
    return UUID(int=min(milliseconds, 2**48 - 1) << 80)
