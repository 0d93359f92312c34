"""Payouts: each step with its postings, its event and its entry in the audit log, in one transaction."""

import msgspec

from core.ids import EventId, MerchantId, PayoutId
from core.payout import Payout, PayoutStatus, approve_payout, end_payout, request_payout
from server import resources
from server.db.connection import Connection
from server.db.events.events import append_event
from server.db.ledger.payouts import insert_payout, lock_payout, store_payout
from server.db.ledger.postings import post
from server.db.merchants.audit import Act, record_act
from server.db.payments.balance_locked import lock_balances


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


async def _tell(connection: Connection, payout: Payout, event_type: str, act: Act) -> None:
    """Write an event of the payout. The caller holds the merchant's sequence."""
    data, event_id = msgspec.json.encode(resources.Payout.of(payout)), EventId(act.id)
    await append_event(connection, payout.merchant_id, event_id, event_type=event_type, data=data, now=act.at)
