"""A change with everything that is written with it, and the record that the statement reads."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from core.evidence import EvidenceKind, Finding, Risk, Source
from core.idempotency import Reply
from core.ids import EventId, LogId, OperationId
from core.ledger import Transfer
from core.payment import Change, OperationKind, Payment, Status
from core.refund import Refund, RefundStatus
from server.db.ledger.postings import PostingRecord, posting_records


class PspEvent(msgspec.Struct, frozen=True):
    """The PSP event that brought the evidence."""

    id: str
    type: str


class ChangeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A change with everything that is written with it. `event_data` is the object as the merchant sees it, in JSON.

    `key` is the idempotency key of the request that the change answers, which is no longer in flight after it; `reply` is its
    definitive reply, or None if there is none yet.
    """

    change: Change
    log_id: LogId
    now: datetime
    transfer: Transfer | None
    event_id: EventId
    event_type: str | None
    event_data: bytes
    psp_event: PspEvent | None = None
    key: str | None = None
    reply: Reply | None = None


class OperationRecord(msgspec.Struct, frozen=True):
    """An operation at the PSP that a change begins."""

    id: UUID
    kind: OperationKind
    amount_minor: int
    currency: str


class RefundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The refund that changes with its payment, as it is after the change."""

    id: UUID
    psp_account_id: UUID
    amount_minor: int
    currency: str
    status: RefundStatus
    from_pending_minor: int
    fee_minor: int
    reason: str | None
    reference: str | None
    failure_code: str | None
    is_accepted: bool
    checks: int
    due_at: datetime | None
    created_at: datetime
    updated_at: datetime
    is_operators_word: bool


class ChangeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change as the statement reads it: the payment after the change, and what is written with it.

    Fields at their column's default are omitted, and so are fields that few changes set, unless this one does.
    """

    merchant_id: UUID
    payment_id: UUID
    version: int
    log_id: UUID
    now: datetime
    source: Source
    kind: EvidenceKind
    psp_account_id: UUID
    status: Status
    due_at: datetime | None = None
    reference: str | None = None
    payment_url: str | None = None
    captured_minor: int = 0
    late: bool = False
    suspended: bool = False
    decline_code: str | None = None
    did_check_again: bool = False
    checks: int = 0
    refunded_minor: int = 0
    disputed_minor: int = 0
    lost_minor: int = 0
    capture_before: datetime | None = None
    pending_id: UUID | None = None
    pending_kind: OperationKind | None = None
    pending_minor: int | None = None
    pending_since: datetime | None = None
    is_warned: bool = False
    release_at: datetime | None = None
    is_given_back: bool = False
    pending_taken_minor: int = 0
    fee_returned_minor: int = 0
    risk: Risk | None = None
    is_operators_word: bool = False
    from_suspense: bool = False
    new_account_id: UUID | None = None
    new_operation_id: UUID | None = None
    new_expires_at: datetime | None = None
    code: str | None = None
    log_reference: str | None = None
    finding: Finding | None = None
    operation_id: UUID | None = None
    operation_state: str | None = None
    event_id: UUID | None = None
    event_type: str | None = None
    event_data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    psp_event_id: str | None = None
    psp_event_type: str | None = None
    reply_key: str | None = None
    reply_status: int | None = None
    reply_body: str | None = None
    transfer_id: UUID | None = None
    transfer_kind: str | None = None
    entries: int = 0
    postings: list[PostingRecord] = []
    operations: list[OperationRecord] = []
    refunds: list[RefundRecord] = []


_STATE_OF_OPENING = {
    EvidenceKind.LOST: "LOST",
    EvidenceKind.UNREACHABLE: "FAILED",
    EvidenceKind.REJECTED: "FAILED",
    EvidenceKind.REROUTED: "FAILED",
    EvidenceKind.DENIED: "FAILED",
    EvidenceKind.OPENED: "DONE",
    EvidenceKind.ATTEMPT_FAILED: "DONE",
    EvidenceKind.AUTHORIZED: "DONE",
    EvidenceKind.CAPTURED: "DONE",
    EvidenceKind.DECLINED: "DONE",
    EvidenceKind.EXPIRED: "DONE",
    EvidenceKind.CANCELED: "DONE",
}
"""The state of the opening operation by kind of evidence. Kinds that are missing say nothing about it."""

_STATE_OF_REFUND = {
    RefundStatus.PENDING: "SENT",
    RefundStatus.SUCCEEDED: "DONE",
    RefundStatus.FAILED: "FAILED",
    RefundStatus.UNKNOWN: "LOST",
}


def record_of(item: ChangeRow) -> ChangeRecord:
    """The record that writes a change."""
    change, transfer, reply = item.change, item.transfer, item.reply
    before, after, evidence = change.before, change.after, change.evidence
    operation_id, operation_state = _ended_operation(change) or (None, None)
    is_told = item.event_type is not None
    return ChangeRecord(
        merchant_id=after.merchant_id,
        payment_id=after.id,
        version=before.version,
        log_id=item.log_id,
        now=item.now,
        source=evidence.source,
        kind=evidence.kind,
        psp_account_id=evidence.psp_account_id,
        status=after.status,
        new_account_id=after.psp_account_id if after.psp_account_id != before.psp_account_id else None,
        new_operation_id=after.operation_id if after.operation_id != before.operation_id else None,
        new_expires_at=after.expires_at if after.expires_at != before.expires_at else None,
        code=evidence.code,
        log_reference=evidence.reference,
        finding=change.finding,
        operation_id=operation_id,
        operation_state=operation_state,
        event_id=item.event_id,
        event_type=item.event_type,
        event_data=msgspec.Raw(item.event_data) if is_told else msgspec.UNSET,
        psp_event_id=item.psp_event.id if item.psp_event is not None else None,
        psp_event_type=item.psp_event.type if item.psp_event is not None else None,
        reply_key=item.key,
        reply_status=reply.status if reply is not None else None,
        # A reply that is the event's own data is stored as the event's number.
        reply_body=reply.body.decode() if reply is not None and not (is_told and reply.body == item.event_data) else None,
        transfer_id=transfer.id if transfer is not None else None,
        transfer_kind=transfer.kind if transfer is not None else None,
        entries=len(transfer.postings) if transfer is not None else 0,
        postings=posting_records(transfer) if transfer is not None else [],
        operations=_operations(change),
        refunds=[_refund(change.refund)] if change.refund is not None else [],
        **_state(after),
    )


def _state(after: Payment) -> dict[str, Any]:
    """The columns that a change can change, as they are after it."""
    pending = after.pending
    return {
        "due_at": after.due_at,
        "reference": after.reference,
        "payment_url": after.payment_url,
        "captured_minor": after.captured_minor,
        "late": after.late,
        "suspended": after.suspended,
        "decline_code": after.decline_code,
        "did_check_again": after.did_check_again,
        "checks": after.checks,
        "refunded_minor": after.refunded_minor,
        "disputed_minor": after.disputed_minor,
        "lost_minor": after.lost_minor,
        "capture_before": after.capture_before,
        "pending_id": pending.id if pending is not None else None,
        "pending_kind": pending.kind if pending is not None else None,
        "pending_minor": pending.amount_minor if pending is not None else None,
        "pending_since": pending.since if pending is not None else None,
        "is_warned": after.is_warned,
        "release_at": after.release_at,
        "is_given_back": after.is_given_back,
        "pending_taken_minor": after.pending_taken_minor,
        "fee_returned_minor": after.fee_returned_minor,
        "risk": after.risk,
        "is_operators_word": after.is_operators_word,
        "from_suspense": after.from_suspense,
    }


def _operations(change: Change) -> list[OperationRecord]:
    """The operations that the change begins."""
    after, refund, found = change.after, change.refund, list[OperationRecord]()
    if change.requested is not None:
        amount_minor = change.requested.amount_minor or after.money.amount_minor
        found.append(OperationRecord(change.requested.id, change.requested.kind, amount_minor, after.money.currency))
    if refund is not None and change.evidence.kind is EvidenceKind.REFUND_REQUESTED:
        found.append(OperationRecord(refund.id, OperationKind.REFUND, refund.money.amount_minor, after.money.currency))
    return found


def _refund(refund: Refund) -> RefundRecord:
    return RefundRecord(
        id=refund.id,
        psp_account_id=refund.psp_account_id,
        amount_minor=refund.money.amount_minor,
        currency=refund.money.currency,
        status=refund.status,
        from_pending_minor=refund.from_pending_minor,
        fee_minor=refund.fee_minor,
        reason=refund.reason,
        reference=refund.reference,
        failure_code=refund.failure_code,
        is_accepted=refund.is_accepted,
        checks=refund.checks,
        due_at=refund.due_at,
        created_at=refund.created_at,
        updated_at=refund.updated_at,
        is_operators_word=refund.is_operators_word,
    )


def _ended_operation(change: Change) -> tuple[OperationId, str] | None:
    """The operation that the change tells something about, and its state."""
    if change.is_mismatch:
        return None
    if change.refund is not None:
        return OperationId(change.refund.id), _STATE_OF_REFUND[change.refund.status]
    before, kind = change.before, change.evidence.kind
    if before.pending is None:
        state = _STATE_OF_OPENING.get(kind)
        return (before.operation_id, state) if state else None
    if change.after.pending is not None:
        return None
    took = kind is EvidenceKind.CAPTURED if before.pending.kind is OperationKind.CAPTURE else kind is EvidenceKind.CANCELED
    return before.pending.id, "DONE" if took else "FAILED"


_CONSTANT = {
    "id", "merchant_id", "order_id", "money", "version", "created_at", "updated_at", "return_url", "description", "capture",
    "is_sync", "is_exclusive", "statement_descriptor", "metadata", "terms",
}  # fmt: skip
_BY_PARTS = {"pending", "psp_account_id", "operation_id", "expires_at"}
assert set(Payment.__struct_fields__) - _CONSTANT - _BY_PARTS <= set(ChangeRecord.__struct_fields__), (
    "a field of a payment that can change is not written"
)
