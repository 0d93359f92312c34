"""Reads payments, lists them, and claims those that are due."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from core.evidence import Risk
from core.ids import MerchantId, OperationId, PaymentId, PspAccountId
from core.money import Money
from core.payment import NO_TERMS, Capture, OperationKind, Payment, PaysOnce, PendingOperation, Status, Terms
from server.db import json_records
from server.db.connection import Connection


class StoredPayment(msgspec.Struct, frozen=True):
    """A payment as it is selected. A field with the name of a payment's field is that field."""

    merchant_id: MerchantId
    id: PaymentId
    psp_account_id: PspAccountId
    operation_id: OperationId
    order_id: str
    amount_minor: int
    currency: str
    status: str
    version: int
    expires_at: datetime
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    reference: str | None
    payment_url: str | None
    return_url: str | None
    description: str | None
    captured_minor: int
    late: bool
    suspended: bool
    decline_code: str | None
    did_check_again: bool
    checks: int
    refunded_minor: int
    disputed_minor: int
    lost_minor: int
    capture_before: datetime | None
    pending_id: OperationId | None
    pending_kind: str | None
    pending_minor: int | None
    pending_since: datetime | None
    is_warned: bool
    release_at: datetime | None
    is_given_back: bool
    pending_taken_minor: int
    fee_returned_minor: int
    capture: str
    is_sync: bool
    live_order_id: str | None
    statement_descriptor: str | None
    metadata: str | None
    fee_basis_points: int
    fee_fixed_minor: int
    refunds_fee: bool
    settlement_delay_seconds: int
    refunds_late: bool
    pays_once: str | None
    risk: str | None
    is_operators_word: bool
    from_suspense: bool


_COLUMNS = json_records.select_list(StoredPayment, "p")
_WIDTH = len(StoredPayment.__struct_fields__)
_MADE_OF_SEVERAL = {"money", "pending", "terms", "is_exclusive"}
assert set(Payment.__struct_fields__) - _MADE_OF_SEVERAL <= set(StoredPayment.__struct_fields__), "a field is not read"
assert set(Terms.__struct_fields__) <= set(StoredPayment.__struct_fields__), "a term is not read"

_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode


def _payment(row: Sequence[Any]) -> Payment:
    record = StoredPayment(*row)
    return Payment(
        merchant_id=record.merchant_id,
        id=record.id,
        psp_account_id=record.psp_account_id,
        operation_id=record.operation_id,
        order_id=record.order_id,
        money=Money(record.amount_minor, record.currency),
        status=Status(record.status),
        version=record.version,
        expires_at=record.expires_at,
        created_at=record.created_at,
        updated_at=record.updated_at,
        due_at=record.due_at,
        reference=record.reference,
        payment_url=record.payment_url,
        return_url=record.return_url,
        description=record.description,
        captured_minor=record.captured_minor,
        late=record.late,
        suspended=record.suspended,
        decline_code=record.decline_code,
        did_check_again=record.did_check_again,
        checks=record.checks,
        refunded_minor=record.refunded_minor,
        disputed_minor=record.disputed_minor,
        lost_minor=record.lost_minor,
        capture_before=record.capture_before,
        pending=_pending(record),
        is_warned=record.is_warned,
        release_at=record.release_at,
        is_given_back=record.is_given_back,
        pending_taken_minor=record.pending_taken_minor,
        fee_returned_minor=record.fee_returned_minor,
        capture=Capture(record.capture),
        is_sync=record.is_sync,
        is_exclusive=record.live_order_id is not None,
        statement_descriptor=record.statement_descriptor,
        metadata=_decode_metadata(record.metadata) if record.metadata else {},
        terms=_terms(record),
        risk=Risk(record.risk) if record.risk else None,
        is_operators_word=record.is_operators_word,
        from_suspense=record.from_suspense,
    )


def _pending(record: StoredPayment) -> PendingOperation | None:
    if record.pending_id is None:
        return None
    assert record.pending_kind is not None
    assert record.pending_since is not None
    kind = OperationKind(record.pending_kind)
    return PendingOperation(id=record.pending_id, kind=kind, amount_minor=record.pending_minor, since=record.pending_since)


def _terms(record: StoredPayment) -> Terms:
    terms = Terms(
        fee_basis_points=record.fee_basis_points,
        fee_fixed_minor=record.fee_fixed_minor,
        refunds_fee=record.refunds_fee,
        settlement_delay_seconds=record.settlement_delay_seconds,
        refunds_late=record.refunds_late,
        pays_once=PaysOnce(record.pays_once) if record.pays_once else None,
    )
    return NO_TERMS if terms == NO_TERMS else terms


async def find_payment(connection: Connection, merchant_id: MerchantId, payment_id: PaymentId) -> Payment | None:
    """Return the merchant's payment, or None if it does not exist or belongs to another merchant."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM payment_requests p WHERE p.merchant_id = $1 AND p.id = $2",  # noqa: S608 - own columns
        merchant_id,
        payment_id,
    )
    return _payment(rows[0]) if rows else None


async def find_owner(connection: Connection, payment_id: UUID) -> MerchantId | None:
    """The merchant of a payment, for an operator who has only its id. Probes one key per merchant."""
    rows = await connection.query(
        """
        SELECT m.merchant_id FROM merchants m
         WHERE EXISTS (SELECT FROM payment_requests p WHERE p.merchant_id = m.merchant_id AND p.id = $1)
        """,
        payment_id,
    )
    return MerchantId(rows[0][0]) if rows else None


async def postpone(connection: Connection, payment: Payment, *, due_at: datetime) -> None:
    """Set the next time to check a payment whose check has just brought nothing, unless it has changed meanwhile.

    The time is never in the past, because our clock and the database's may differ.
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
    """Merchants with payments that a job has to look at now."""
    rows = await connection.query(
        "SELECT merchant_id FROM payment_requests WHERE due_at <= now() GROUP BY merchant_id ORDER BY min(due_at) LIMIT $1",
        limit,
    )
    return [MerchantId(row[0]) for row in rows]


async def claim_due_payments(
    connection: Connection, merchant_id: MerchantId, *, limit: int, lease_seconds: float
) -> list[Payment]:
    """Claim due payments of one merchant for `lease_seconds`. No other worker gets them until then.

    The claim is not a change: evidence that arrives meanwhile is still written by compare-and-set on the version.
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
    """A filter of payments. The times bound `created_at`; None matches everything."""

    status: Status | None = None
    order_id: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None


CLOCKS_DIFFER_MAX = timedelta(seconds=31)
"""The longest time between a payment's `created_at`, which is the database's, and the time in its id, which is the machine's
(`server.clock`).
"""

SCAN_MAX = 5_000
"""The number of payments that one page may scan for a status, which bounds its cost."""


async def list_payments(
    connection: Connection, merchant_id: MerchantId, wanted: Filter, *, after: UUID | None, limit: int
) -> tuple[list[Payment], UUID | None]:
    """A page of payments, newest first, and the start of the next page, or None at the end.

    Ids are UUIDv7, so they sort by creation time. A page may hold fewer than `limit` payments, even none, and still have a next
    one.
    """
    rows = await connection.query(
        f"""
        WITH page AS (
            SELECT id FROM payment_requests
             WHERE merchant_id = $1 AND id < $2 AND id >= $3 AND ($4::text IS NULL OR order_id = $4)
               AND ($8::timestamptz IS NULL OR created_at >= $8) AND ($9::timestamptz IS NULL OR created_at < $9)
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
        min(after or _LAST, _first_id_at(wanted.created_before + CLOCKS_DIFFER_MAX) if wanted.created_before else _LAST),
        _first_id_at(wanted.created_from - CLOCKS_DIFFER_MAX) if wanted.created_from else UUID(int=0),
        wanted.order_id,
        SCAN_MAX if wanted.status else limit + 1,
        wanted.status.value if wanted.status else None,
        limit + 1,
        wanted.created_from,
        wanted.created_before,
    )
    payments = [_payment(row[:_WIDTH]) for row in rows if row[0] is not None]
    if len(payments) > limit:
        return payments[:limit], payments[limit - 1].id
    last, looked_at = rows[0][-2:]
    return payments, UUID(last) if wanted.status and looked_at == SCAN_MAX else None


_LAST = UUID(int=2**128 - 1)


def _first_id_at(moment: datetime) -> UUID:
    """The smallest UUIDv7 of that millisecond (RFC 9562)."""
    milliseconds = max(int(moment.timestamp() * 1_000), 0)
    return UUID(int=min(milliseconds, 2**48 - 1) << 80)
