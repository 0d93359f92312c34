"""Payouts: their rows and the postings of each step, in one transaction each."""

from datetime import datetime
from typing import Any

from core.errors import NotFound
from core.ids import PAYOUT, MerchantId, PayoutId, encode_id
from core.money import Money
from core.payout import Payout, PayoutStatus, approve_payout, end_payout, request_payout
from server.db.connection import Connection
from server.db.ledger.postings import post
from server.db.merchants.audit import Act, record_act
from server.db.payments.balance_locked import lock_balances

LIST_MAX = 1_000
_FIELDS = (
    "merchant_id",
    "id",
    "amount_minor",
    "currency",
    "status",
    "requested_by",
    "approved_by",
    "reference",
    "failure",
    "created_at",
    "updated_at",
)
_COLUMNS = ", ".join(_FIELDS)


def _payout(row: tuple[Any, ...]) -> Payout:
    values = dict(zip(_FIELDS, row, strict=True))
    money = Money(values.pop("amount_minor"), values.pop("currency"))
    return Payout(**{**values, "money": money, "status": PayoutStatus(values["status"])})


async def add_payout(connection: Connection, payout: Payout, act: Act) -> None:
    """Set the money aside. Raises `Conflict` if the wallet does not hold it."""
    async with connection.atomic():
        balances = await lock_balances(connection, payout.merchant_id, payout.money.currency)
        await post(connection, payout.merchant_id, request_payout(payout, balances), now=payout.created_at)
        await connection.run(
            """
            INSERT INTO payouts (merchant_id, id, amount_minor, currency, status, requested_by, created_at, updated_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
            """,
            payout.merchant_id,
            payout.id,
            payout.money.amount_minor,
            payout.money.currency,
            payout.status.value,
            payout.requested_by,
            payout.created_at,
        )
        await record_act(connection, act)


async def approve(connection: Connection, merchant_id: MerchantId, payout_id: PayoutId, act: Act) -> Payout:
    """Record an operator's approval. Raises `NotFound`, `Conflict`."""
    async with connection.atomic():
        payout = await _locked(connection, merchant_id, payout_id)
        balances = await lock_balances(connection, merchant_id, payout.money.currency)
        after = approve_payout(payout, balances, operator=act.actor, now=act.at)
        await _store(connection, after)
        await record_act(connection, act)
    return after


async def end(
    connection: Connection,
    merchant_id: MerchantId,
    payout_id: PayoutId,
    status: PayoutStatus,
    act: Act,
    *,
    reference: str | None = None,
    failure: str | None = None,
) -> Payout:
    """Record the bank's answer and move the money. Raises `NotFound`, `Conflict`."""
    async with connection.atomic():
        payout = await _locked(connection, merchant_id, payout_id)
        after, moved = end_payout(payout, status, reference=reference, failure=failure, now=act.at)
        await lock_balances(connection, merchant_id, payout.money.currency)
        await post(connection, merchant_id, moved, now=act.at)
        await _store(connection, after)
        await record_act(connection, act)
    return after


async def list_payouts(connection: Connection, merchant_id: MerchantId | None) -> list[Payout]:
    """Payouts of one merchant or of all, newest first, at most `LIST_MAX`."""
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM payouts WHERE $1::uuid IS NULL OR merchant_id = $1 ORDER BY id DESC LIMIT $2",  # noqa: S608 - own columns
        merchant_id,
        LIST_MAX,
    )
    return [_payout(row) for row in rows]


async def find_payout_owner(connection: Connection, payout_id: PayoutId) -> MerchantId:
    """The merchant of a payout, for an operator who has only its id. Raises `NotFound`."""
    rows = await connection.query(
        """
        SELECT m.merchant_id FROM merchants m
         WHERE EXISTS (SELECT FROM payouts p WHERE p.merchant_id = m.merchant_id AND p.id = $1)
        """,
        payout_id,
    )
    if not rows:
        raise NotFound(f"there is no payout {encode_id(PAYOUT, payout_id)}: `florin payout list` shows them")
    return MerchantId(rows[0][0])


async def _locked(connection: Connection, merchant_id: MerchantId, payout_id: PayoutId) -> Payout:
    rows = await connection.query(
        f"SELECT {_COLUMNS} FROM payouts WHERE merchant_id = $1 AND id = $2 FOR UPDATE",  # noqa: S608 - own columns
        merchant_id,
        payout_id,
    )
    if not rows:
        raise NotFound(f"there is no payout {encode_id(PAYOUT, payout_id)}")
    return _payout(rows[0])


async def _store(connection: Connection, payout: Payout) -> None:
    now: datetime = payout.updated_at
    await connection.run(
        """
        UPDATE payouts SET status = $3, approved_by = $4, approved_at = CASE WHEN $4::text IS NULL THEN NULL ELSE
        coalesce(approved_at, $5) END, reference = $6, failure = $7, updated_at = $5 WHERE merchant_id = $1 AND id = $2
        """,
        payout.merchant_id,
        payout.id,
        payout.status.value,
        payout.approved_by,
        now,
        payout.reference,
        payout.failure,
    )
