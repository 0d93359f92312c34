"""Apply evidence to a payment: the one way in which a payment changes.

Read, think (`core.payment.apply`), compare-and-set; where another change came first, read and think again. Every round someone
makes progress, so the bound on rounds is reached only when something is wrong.
"""

from dataclasses import dataclass, replace

import msgspec

from core.errors import Overloaded
from core.events import event_type_of, payment_data
from core.evidence import Evidence, Finding
from core.ids import EventId, LogId, MerchantId, PaymentId
from core.ledger import transfer_of
from core.payment import Change, Payment, apply
from server.db.change_batch import Applied, ChangeRow, PspEvent, Reply
from server.db.connection import Connection
from server.db.findings import has_open_finding, has_transfer
from server.db.payments import find_payment
from server.db.psp_events import was_seen
from server.flows.services import Services
from server.new_ids import uuid7

ROUNDS_MAX = 16


@dataclass(frozen=True, slots=True)
class Settled:
    """The payment after the evidence; `changed` is False where it brought nothing new."""

    payment: Payment
    changed: bool


@dataclass(frozen=True, slots=True)
class Answering:
    """The change answers an idempotent request: with the payment and this status, or, where it is None, not definitively."""

    key: str
    status: int | None


def encode_payment(payment: Payment) -> bytes:
    """A payment in JSON, as merchants see it."""
    return msgspec.json.encode(payment_data(payment))


async def settle(
    services: Services,
    merchant_id: MerchantId,
    payment_id: PaymentId,
    evidence: Evidence,
    *,
    known: Payment | None = None,
    psp_event: PspEvent | None = None,
    answering: Answering | None = None,
    only_if_unchanged: bool = False,
) -> Settled | None:
    """Apply evidence; None where the payment does not exist.

    `known` saves the first read. `only_if_unchanged`: the evidence proves something only about the payment as it was `known`
    when the PSP was asked, and is dropped where another change came first. Idempotent. Cancelled before the commit it changes
    nothing, after it all. Raises `DatabaseUnavailable`, `Overloaded`, `IllegalTransition`.
    """
    payment = known
    for _ in range(ROUNDS_MAX):
        if payment is None:
            async with services.db.pool.connection() as connection:
                payment = await find_payment(connection, merchant_id, payment_id)
        if payment is None:
            return None
        now = services.now()
        change = apply(payment, evidence, now=now)
        if change is not None and change.finding is Finding.EVIDENCE_MISMATCH and await _was_found(services, change):
            change = _without_finding(change)
        if change is None:
            return Settled(payment, changed=False)
        row = _row(change, psp_event=psp_event, answering=answering)
        result = await services.db.changes.submit(row)
        if isinstance(result, Applied):
            services.notify(result.deliveries)
            return Settled(change.after, changed=True)
        async with services.db.pool.connection() as connection:
            payment = await find_payment(connection, merchant_id, payment_id)
            if payment is not None and (only_if_unchanged or await _was_seen(connection, payment, evidence, psp_event)):
                return Settled(payment, changed=False)
    raise Overloaded("the payment changes faster than this change can be made")


async def _was_found(services: Services, change: Change) -> bool:
    """Whether this mismatch has been written before: its money is in suspense, or the finding is open."""
    transfer = transfer_of(change)
    async with services.db.pool.connection() as connection:
        if transfer is not None:
            return await has_transfer(connection, change.after.merchant_id, transfer)
        return await has_open_finding(connection, change.after, Finding.EVIDENCE_MISMATCH)


def _without_finding(change: Change) -> Change | None:
    """What remains of a mismatch that was written before: that there is nothing more for a job to do, if that is news."""
    if change.after.due_at == change.before.due_at:
        return None
    return replace(change, finding=None, to_suspense=None)


async def _was_seen(connection: Connection, payment: Payment, evidence: Evidence, psp_event: PspEvent | None) -> bool:
    """Whether another delivery of the same event was faster."""
    if psp_event is None:
        return False
    account_id = evidence.psp_account_id
    return await was_seen(connection, payment.merchant_id, payment.id, account_id, event_id=psp_event.id)


def _row(change: Change, *, psp_event: PspEvent | None, answering: Answering | None) -> ChangeRow:
    data = encode_payment(change.after)
    return ChangeRow(
        change=change,
        log_id=LogId(uuid7()),
        now=change.after.updated_at,
        transfer=transfer_of(change),
        event_id=EventId(uuid7()),
        event_type=event_type_of(change),
        event_data=data,
        psp_event=psp_event,
        reply=_reply(answering, data) if answering else None,
    )


def _reply(answering: Answering, data: bytes) -> Reply:
    return Reply(answering.key, (answering.status, data) if answering.status is not None else None)
