"""The result of a batch item that was cut off by the deadline, a stop, or the end of its worker.

A charge that may have been carried out is UNKNOWN, never declined, and the follow-up job checks it again.
"""

from dataclasses import replace

from core.batch import ATTEMPTS_MAX, ItemResult, ItemStatus, ItemType, item_key, was_never_received
from core.evidence import EvidenceKind, Source
from core.idempotency import StoredKey
from core.ids import PaymentId, RefundId
from core.payment import UNSETTLED, evidence_about
from server.db.connection import Connection
from server.db.payments.idempotency_keys import find_key, release_key
from server.db.payments.payments import find_payment
from server.db.payments.refunds import find_refund
from server.flows.batches.item import Item, Place, cut_off, of_payment, of_refund
from server.flows.contexts import Payments
from server.flows.payments.settle import settle


async def leave(context: Payments, place: Place, item: Item, *, is_ours: bool) -> ItemResult | None:
    """The result of an item that was cut off, or None if it was never begun.

    A charge without an answer becomes UNKNOWN, so that it is settled later. `is_ours`: nobody else works on it, so a resumption
    need not wait. Raises `DatabaseUnavailable`, `Overloaded`.
    """
    unknown = cut_off(place, item, code="deadline_passed", detail="the batch ended before the answer came")
    if item.type is ItemType.VERIFY:
        return unknown
    async with context.pool.connection() as connection:
        found = await _last_key(connection, place, item)
        if found is None:
            return None
        key, stored = found
        payment_id = PaymentId(stored.resource_id)
        payment = await find_payment(connection, place.merchant_id, payment_id)
        if item.type is ItemType.REFUND and stored.made_id is not None:
            made = await find_refund(connection, place.merchant_id, payment_id, RefundId(stored.made_id))
            unknown = replace(unknown, payment_id=payment_id, refund_id=made.id if made is not None else None)
            return of_refund(unknown, made) if made is not None and stored.reply is not None else unknown
    if payment is None:
        return unknown
    if item.type is ItemType.CAPTURE:
        return of_payment(unknown, payment) if stored.reply is not None else replace(unknown, payment_id=payment.id)
    if payment.status in UNSETTLED:
        lost = evidence_about(payment, EvidenceKind.LOST, Source.CREATE)
        settled = await settle(context, payment.merchant_id, payment.id, lost, known=payment)
        payment = settled.payment if settled is not None else payment
        if is_ours:
            async with context.pool.connection() as connection:
                await release_key(connection, place.merchant_id, key, in_flight_until=stored.in_flight_until)
    if was_never_received(payment):
        return None  # between two attempts
    told = of_payment(unknown, payment)
    if told.status is not ItemStatus.UNKNOWN or payment.decline_code is not None:
        return told
    return replace(unknown, payment_id=payment.id, payment_status=payment.status)


async def _last_key(connection: Connection, place: Place, item: Item) -> tuple[str, StoredKey] | None:
    """The key of the item's last attempt, and what is stored under it."""
    found: tuple[str, StoredKey] | None = None
    for attempt in range(1, ATTEMPTS_MAX + 1 if item.type is ItemType.CHARGE else 2):
        key = item_key(place.batch_id, place.number, attempt=attempt)
        stored = await find_key(connection, place.merchant_id, key)
        if stored is None:
            break
        found = key, stored
    return found
