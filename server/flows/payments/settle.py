"""Applies evidence to a payment or to one of its refunds: the only way in which they change (promise:one-transition).

Read, decide (`core.transition.apply`, `core.refund_transition.apply_refund`), compare-and-set; if another change came first, read
and decide again. In every round some change succeeds, so the limit on rounds is reached only if something is wrong.
"""

from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace

from core.errors import Overloaded
from core.events import event_type_of
from core.evidence import DISPUTES, Evidence, EvidenceKind, Finding
from core.idempotency import Reply
from core.ids import EventId, LogId, MerchantId, PaymentId, RefundId
from core.ledger import Transfer, dispute_transfer, transfer_of
from core.matching import mismatch
from core.payment import Change, Payment
from core.refund import Refund
from core.refund_transition import apply_refund
from core.transition import apply
from server import resources
from server.db.connection import Connection
from server.db.payments.change_row import ChangeRow, PspEvent
from server.db.payments.changes import Applied
from server.db.payments.findings import has_open_finding, has_transfer
from server.db.payments.payments import find_payment
from server.db.payments.refunds import find_refund
from server.db.psps.events import was_seen
from server.flows.contexts import Settlement
from server.flows.idempotency import Request
from server.uuid7 import uuid7

ROUNDS_MAX = 16


class Settled(msgspec.Struct, frozen=True):
    """The payment (and refund) after the evidence; `changed` is False if it brought nothing new.

    `is_answered`: the definitive reply was stored with the change.
    """

    payment: Payment
    changed: bool
    refund: Refund | None = None
    is_answered: bool = False


class Answering(msgspec.Struct):
    """The change answers an idempotent request. `is_definitive` decides whether its result is the definitive reply, which is
    `reply` once it is stored.
    """

    request: Request
    is_definitive: Callable[[Change], bool]
    reply: Reply | None = None


def encode_payment(payment: Payment) -> bytes:
    """A payment in JSON, as merchants see it."""
    return msgspec.json.encode(resources.Payment.of(payment))


def encode_refund(refund: Refund) -> bytes:
    """A refund in JSON, as merchants see it."""
    return msgspec.json.encode(resources.Refund.of(refund))


async def settle(
    context: Settlement,
    merchant_id: MerchantId,
    payment_id: PaymentId,
    evidence: Evidence,
    *,
    known: Payment | None = None,
    psp_event: PspEvent | None = None,
    answering: Answering | None = None,
    only_if_unchanged: bool = False,
) -> Settled | None:
    """Apply evidence to a payment. Returns None if it does not exist.

    `known` saves the first read. `only_if_unchanged`: the evidence is proof only for the payment as it was in `known` when the
    PSP was asked, and is dropped if another change came first. Idempotent. If canceled, the change happens completely or not at
    all. Raises `DatabaseUnavailable`, `Overloaded`, `IllegalTransition`.
    """

    async def decide(payment: Payment) -> tuple[Change | None, Refund | None]:
        change = apply(payment, evidence, now=context.now())
        if change is not None and (change.is_mismatch or evidence.kind in DISPUTES):
            async with context.pool.connection() as connection:
                if not change.is_mismatch and evidence.kind is not EvidenceKind.DISPUTED:
                    opening = dispute_transfer(payment, replace(evidence, kind=EvidenceKind.DISPUTED))
                    if not await has_transfer(connection, merchant_id, opening):
                        change = mismatch(payment, evidence, now=context.now())  # the end of another dispute
                change = await _unless_written(connection, change)
        return change, None

    return await _change(
        context,
        (merchant_id, payment_id),
        decide,
        known=known,
        psp_event=psp_event,
        answering=answering,
        only_if_unchanged=only_if_unchanged,
        evidence=evidence,
    )


async def settle_refund(
    context: Settlement,
    merchant_id: MerchantId,
    payment_id: PaymentId,
    refund_id: RefundId,
    evidence: Evidence,
    *,
    answering: Answering | None = None,
) -> Settled | None:
    """Apply evidence to a refund and its payment. Returns None if there is no such refund. Otherwise like `settle`."""

    async def decide(payment: Payment) -> tuple[Change | None, Refund | None]:
        async with context.pool.connection() as connection:
            refund = await find_refund(connection, merchant_id, payment_id, refund_id)
            if refund is None:
                return None, None
            change = apply_refund(payment, refund, evidence, now=context.now())
            if change is not None and change.is_mismatch:
                change = await _unless_written(connection, change)
            return change, change.refund if change is not None else refund

    settled = await _change(
        context,
        (merchant_id, payment_id),
        decide,
        known=None,
        psp_event=None,
        answering=answering,
        only_if_unchanged=False,
        evidence=evidence,
    )
    return settled if settled is not None and settled.refund is not None else None


async def _change(
    context: Settlement,
    ids: tuple[MerchantId, PaymentId],
    decide: Callable[[Payment], Awaitable[tuple[Change | None, Refund | None]]],
    *,
    known: Payment | None,
    psp_event: PspEvent | None,
    answering: Answering | None,
    only_if_unchanged: bool,
    evidence: Evidence,
) -> Settled | None:
    payment = known
    for _ in range(ROUNDS_MAX):
        if payment is None:
            async with context.pool.connection() as connection:
                payment = await find_payment(connection, *ids)
        if payment is None:
            return None
        change, refund = await decide(payment)
        if change is None:
            return Settled(payment, changed=False, refund=refund)
        row = row_of(change, psp_event=psp_event, answering=answering)
        result = await context.changes.submit(row)
        if isinstance(result, Applied):
            if answering is not None:
                answering.reply = row.reply
            context.notify(result)
            return Settled(change.after, changed=True, refund=refund, is_answered=row.reply is not None)
        async with context.pool.connection() as connection:
            payment = await find_payment(connection, *ids)
            if payment is not None and (only_if_unchanged or await _was_seen(connection, payment, evidence, psp_event)):
                return Settled(payment, changed=False, refund=refund)
    raise Overloaded("the payment changes too often: try again")


async def _unless_written(connection: Connection, change: Change) -> Change | None:
    """Return the change. If its money is already posted or its finding is already open, return what is left of it: its new due
    time, or None if nothing is left.
    """
    is_dispute = change.evidence.kind in DISPUTES
    transfer = _dispute_transfer(change) if is_dispute else transfer_of(change)
    was_written = transfer is not None and await has_transfer(connection, change.after.merchant_id, transfer)
    if not was_written and change.is_mismatch and (transfer is None or is_dispute):
        was_written = await has_open_finding(connection, change.after, Finding.EVIDENCE_MISMATCH)
    if not was_written:
        return change
    if change.after.due_at == change.before.due_at or change.evidence.kind in DISPUTES:
        return None
    return replace(change, finding=None, to_suspense=None)


def _dispute_transfer(change: Change) -> Transfer | None:
    assert change.evidence.money is not None
    return dispute_transfer(change.before, change.evidence) if change.evidence.money.amount_minor > 0 else None


async def _was_seen(connection: Connection, payment: Payment, evidence: Evidence, psp_event: PspEvent | None) -> bool:
    """Return whether another delivery of the same event was faster."""
    if psp_event is None:
        return False
    account_id = evidence.psp_account_id
    return await was_seen(connection, payment.merchant_id, payment.id, account_id, event_id=psp_event.id)


def row_of(
    change: Change, *, psp_event: PspEvent | None = None, answering: Answering | None = None, pending_minor: int = 0
) -> ChangeRow:
    """A change with everything that is written with it; `pending_minor` as for `core.ledger.transfer_of`."""
    data = encode_refund(change.refund) if change.refund is not None else encode_payment(change.after)
    return ChangeRow(
        change=change,
        log_id=LogId(uuid7()),
        now=change.after.updated_at,
        transfer=transfer_of(change, pending_minor=pending_minor),
        event_id=EventId(uuid7()),
        event_type=event_type_of(change),
        event_data=data,
        psp_event=psp_event,
        key=answering.request.key if answering is not None else None,
        reply=_reply(answering, change, data) if answering is not None else None,
    )


def _reply(answering: Answering, change: Change, data: bytes) -> Reply | None:
    is_definitive = not change.is_mismatch and answering.is_definitive(change)
    return Reply(answering.request.reply_status, data) if is_definitive else None
