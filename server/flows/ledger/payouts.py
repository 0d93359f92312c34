"""Payouts: each step with its postings, its event and its entry in the audit log, in one transaction."""

from datetime import datetime, timedelta

import msgspec

from core.errors import Conflict
from core.ids import PAYOUT, EventId, MerchantId, PayoutId, encode_id
from core.operator_requests import EXPIRES_AFTER_DAYS
from core.payout import Payout, PayoutStatus, approve_payout, end_payout, request_payout
from server import resources
from server.db.connection import Connection
from server.db.events.events import append_event
from server.db.ledger.payouts import insert_payout, lock_payout, store_payout, unapproved_payouts
from server.db.ledger.postings import post
from server.db.merchants.audit import Act, record_act
from server.db.payments.balance_locked import lock_balances
from server.uuid7 import uuid7

EXPIRED_AT_ONCE_MAX = 100


async def add_payout(connection: Connection, payout: Payout, act: Act) -> None:
    """Set the money aside. Raises `Conflict` if the wallet does not hold it."""
    async with connection.atomic():
        balances = await lock_balances(connection, payout.merchant_id, payout.money.currency)
        await post(connection, payout.merchant_id, request_payout(payout, balances), now=payout.created_at)
        await insert_payout(connection, payout, act.operator_id)
        await record_act(connection, act)
        await _tell(connection, payout, "payout.created", act)


async def approve(connection: Connection, merchant_id: MerchantId, payout_id: PayoutId, act: Act) -> Payout:
    """Record an operator's approval. Raises `NotFound`, `Conflict`."""
    async with connection.atomic():
        payout = await lock_payout(connection, merchant_id, payout_id)
        balances = await lock_balances(connection, merchant_id, payout.money.currency)
        after = approve_payout(payout, balances, operator=act.actor, now=act.at)
        await store_payout(connection, after, approved_by_id=act.operator_id)
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
        payout = await lock_payout(connection, merchant_id, payout_id)
        after, moved = end_payout(payout, status, reference=reference, failure=failure, now=act.at)
        await lock_balances(connection, merchant_id, payout.money.currency)
        await post(connection, merchant_id, moved, now=act.at)
        await store_payout(connection, after)
        await record_act(connection, act)
        await _tell(connection, after, f"payout.{status.value.lower()}", act)
    return after


async def expire(connection: Connection, *, now: datetime) -> None:
    """Give back the money of payouts that nobody has approved in time."""
    before = now - timedelta(days=EXPIRES_AFTER_DAYS)
    for payout in await unapproved_payouts(connection, before=before, limit=EXPIRED_AT_ONCE_MAX):
        act = Act(
            id=uuid7(),
            merchant_id=payout.merchant_id,
            actor="florin",
            action="payout.expire",
            detail=str(payout.money),
            at=now,
            subject=encode_id(PAYOUT, payout.id),
        )
        try:
            await end(connection, payout.merchant_id, payout.id, PayoutStatus.FAILED, act, failure="nobody approved it in time")
        except Conflict:
            continue  # somebody was faster


async def _tell(connection: Connection, payout: Payout, event_type: str, act: Act) -> None:
    """Write an event of the payout. The caller holds the merchant's sequence."""
    data, event_id = msgspec.json.encode(resources.Payout.of(payout)), EventId(act.id)
    await append_event(connection, payout.merchant_id, event_id, event_type=event_type, data=data, now=act.at)
