"""Requests of operators about money: their rows, their approval by another operator, and their end.

A request that needs no approval, or has it, is APPROVED and is carried out by a worker. The constraint `four_eyes` refuses an
approval by the one who has requested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec
import psycopg

from core.errors import Conflict
from core.ids import MerchantId, PaymentId
from core.operator_requests import EXPIRES_AFTER_DAYS, Document, needs_approval
from core.operators import Operator
from server.db.connection import Connection

_FIELDS = (
    *("merchant_id", "id", "document", "payment_id", "reason", "state", "needs_approval", "requested_by", "requested_by_name"),
    *("approved_by", "approved_by_name", "result", "created_at", "expires_at", "updated_at"),
)
_COLUMNS = ", ".join(_FIELDS)


class RequestState(StrEnum):
    """The state of a request. FAILED: it could not be carried out, and `result` says why."""

    REQUESTED = "REQUESTED"
    APPROVED = "APPROVED"
    DONE = "DONE"
    FAILED = "FAILED"
    WITHDRAWN = "WITHDRAWN"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRequest:
    """A request of an operator. A `document` of a newer version is None."""

    merchant_id: MerchantId
    id: UUID
    document: Document | None
    payment_id: PaymentId | None
    reason: str
    state: RequestState
    needs_approval: bool
    requested_by: UUID
    requested_by_name: str
    approved_by: UUID | None
    approved_by_name: str | None
    result: str | None
    created_at: datetime
    expires_at: datetime
    updated_at: datetime

    @property
    def operators(self) -> str:
        """The names of those who have requested and approved it."""
        return f"{self.requested_by_name} and {self.approved_by_name}" if self.approved_by_name else self.requested_by_name


_decode = msgspec.json.Decoder(Document).decode


def _request(row: Sequence[Any]) -> OperatorRequest:
    values = dict(zip(_FIELDS, row, strict=True))
    try:
        document = _decode(values["document"])
    except msgspec.DecodeError:
        document = None
    return OperatorRequest(**{**values, "document": document, "state": RequestState(values["state"])})


async def add_request(
    connection: Connection,
    merchant_id: MerchantId,
    request_id: UUID,
    document: Document,
    *,
    payment_id: PaymentId | None,
    reason: str,
    operator: Operator,
    now: datetime,
) -> OperatorRequest:
    """Store a request in the caller's transaction."""
    is_open = needs_approval(document)
    rows = await connection.query(
        f"""
        INSERT INTO operator_requests (
            merchant_id, id, kind, document, payment_id, reason, state, needs_approval, requested_by, requested_by_name,
            created_at, expires_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $11) RETURNING {_COLUMNS}
        """,  # noqa: S608 - own columns
        merchant_id,
        request_id,
        type(document).__struct_config__.tag,
        msgspec.json.encode(document).decode(),
        payment_id,
        reason,
        (RequestState.REQUESTED if is_open else RequestState.APPROVED).value,
        is_open,
        operator.id,
        operator.name,
        now,
        now + timedelta(days=EXPIRES_AFTER_DAYS),
    )
    return _request(rows[0])


async def approve_request(connection: Connection, found: OperatorRequest, operator: Operator, *, now: datetime) -> bool:
    """Approve a request. Returns False if it is no longer open. Raises `Conflict` for the operator who has requested it."""
    try:
        touched = await connection.run(
            """
            UPDATE operator_requests SET state = 'APPROVED', approved_by = $3, approved_by_name = $4, updated_at = $5
             WHERE merchant_id = $1 AND id = $2 AND state = 'REQUESTED' AND expires_at > $5
            """,
            found.merchant_id,
            found.id,
            operator.id,
            operator.name,
            now,
        )
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name != "four_eyes":
            raise
        raise Conflict(f"{operator.name} made this request, so another operator has to approve it", code="four_eyes") from error
    return touched == 1


async def withdraw_request(connection: Connection, found: OperatorRequest, *, result: str, now: datetime) -> bool:
    """Withdraw or refuse a request. Returns False if it is no longer open."""
    return (
        await connection.run(
            """
        UPDATE operator_requests SET state = 'WITHDRAWN', result = $3, updated_at = $4
         WHERE merchant_id = $1 AND id = $2 AND state = 'REQUESTED'
        """,
            found.merchant_id,
            found.id,
            result,
            now,
        )
        == 1
    )


async def end_request(connection: Connection, found: OperatorRequest, state: RequestState, result: str, *, now: datetime) -> bool:
    """Record the end of an approved request. Returns False if another worker was faster."""
    return (
        await connection.run(
            """
        UPDATE operator_requests SET state = $3, result = $4, updated_at = $5
         WHERE merchant_id = $1 AND id = $2 AND state = 'APPROVED'
        """,
            found.merchant_id,
            found.id,
            state.value,
            result[:1_000],
            now,
        )
        == 1
    )


async def lock_request(connection: Connection, found: OperatorRequest) -> bool:
    """Lock an approved request until the transaction ends. Returns False if it has been carried out."""
    rows = await connection.query(
        "SELECT state FROM operator_requests WHERE merchant_id = $1 AND id = $2 FOR UPDATE", found.merchant_id, found.id
    )
    return bool(rows) and rows[0][0] == RequestState.APPROVED


async def expire_requests(connection: Connection, *, limit: int) -> list[OperatorRequest]:
    """End requests that nobody has approved in time, and return them."""
    rows = await connection.query(
        f"""
        UPDATE operator_requests r SET state = 'EXPIRED', result = 'nobody approved it in time', updated_at = now()
          FROM (SELECT merchant_id AS of_merchant, id AS of_id FROM operator_requests
                 WHERE state = 'REQUESTED' AND expires_at <= now() ORDER BY expires_at LIMIT $1) old
         WHERE r.merchant_id = old.of_merchant AND r.id = old.of_id AND r.state = 'REQUESTED'
        RETURNING {_COLUMNS}
        """,  # noqa: S608 - own columns
        limit,
    )
    return [_request(row) for row in rows]


async def put_back(connection: Connection, found: OperatorRequest) -> None:
    """Let the other requests go first, because this one cannot be carried out now."""
    await connection.run(
        "UPDATE operator_requests SET updated_at = now() WHERE merchant_id = $1 AND id = $2 AND state = 'APPROVED'",
        found.merchant_id,
        found.id,
    )


async def approved_requests(connection: Connection, *, limit: int) -> list[OperatorRequest]:
    """Requests to carry out, the oldest first."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM operator_requests WHERE state = 'APPROVED' ORDER BY updated_at, id LIMIT $1",  # noqa: S608 - own columns
        limit,
    )
    return [_request(row) for row in rows]


async def find_request(connection: Connection, request_id: UUID) -> OperatorRequest | None:
    """The request of that id, for an operator who has only that."""
    rows = await connection.query(f"SELECT {_COLUMNS} FROM operator_requests WHERE id = $1", request_id)  # noqa: S608 - own columns
    return _request(rows[0]) if rows else None


async def list_requests(
    connection: Connection, *, only_open: bool, payment_id: UUID | None = None, limit: int
) -> list[OperatorRequest]:
    """Requests, newest first."""
    rows = await connection.query(
        f"""
        SELECT {_COLUMNS} FROM operator_requests
         WHERE (NOT $1::boolean OR state IN ('REQUESTED', 'APPROVED')) AND ($2::uuid IS NULL OR payment_id = $2)
         ORDER BY id DESC LIMIT $3
        """,  # noqa: S608 - own columns
        only_open,
        payment_id,
        limit,
    )
    return [_request(row) for row in rows]
