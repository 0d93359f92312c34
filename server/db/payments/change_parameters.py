"""The columns of a batch of changes, as the arrays that `server.db.payments.changes` passes.

What nearly every change carries is one set of arrays; what is rare (a refund, a new operation, a dispute) has sets of its own,
which are empty most of the time and then cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from core.evidence import EvidenceKind
from core.ids import OperationId
from core.payment import Change, OperationKind, Payment
from core.refund import RefundStatus
from server.db.array_literals import plain, quoted, times, uuids

if TYPE_CHECKING:
    from server.db.payments.changes import ChangeRow

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
"""What evidence says of the operation that opened the payment; what is not here says nothing."""

_STATE_OF_REFUND = {
    RefundStatus.PENDING: "SENT",
    RefundStatus.SUCCEEDED: "DONE",
    RefundStatus.FAILED: "FAILED",
    RefundStatus.UNKNOWN: "LOST",
}


def of(items: Sequence[ChangeRow]) -> tuple[list[str], list[str]]:
    """The arrays of every batch, and those of what is seldom, empty where nothing of that is in it; in the parameters' order."""
    usual = [*_common(items), *_postings(items)]
    if not any(_is_seldom(item.change) for item in items):
        return usual, []
    return usual, [*_rare(items), *_requested(items), *_refunds(items)]


def _common(items: Sequence[ChangeRow]) -> Iterator[str]:
    after = [item.change.after for item in items]
    evidence = [item.change.evidence for item in items]
    operations = [_ended_operation(item.change) for item in items]
    replies = [item.reply for item in items]
    definitive = [reply.definitive if reply else None for reply in replies]
    yield uuids([payment.merchant_id for payment in after])
    yield uuids([payment.id for payment in after])
    yield plain([item.change.before.version for item in items])
    yield uuids([item.log_id for item in items])
    yield plain([payment.status for payment in after])
    yield quoted([payment.reference for payment in after])
    yield quoted([payment.payment_url for payment in after])
    yield plain([payment.captured_minor for payment in after])
    yield times([payment.due_at for payment in after])
    yield times([item.now for item in items])
    yield plain([fact.source for fact in evidence])
    yield plain([fact.kind for fact in evidence])
    yield quoted([fact.code for fact in evidence])
    yield quoted([fact.reference for fact in evidence])
    yield uuids([operation[0] if operation else None for operation in operations])
    yield plain([operation[1] if operation else None for operation in operations])
    yield uuids([item.event_id for item in items])
    yield plain([item.event_type for item in items])
    yield quoted([item.event_data.decode() if item.event_type else None for item in items])
    yield plain([len(item.transfer.postings) if item.transfer else 0 for item in items])
    yield uuids([fact.psp_account_id for fact in evidence])
    yield quoted([item.psp_event.id if item.psp_event else None for item in items])
    yield quoted([item.psp_event.type if item.psp_event else None for item in items])
    yield quoted([reply.key if reply else None for reply in replies])
    yield plain([reply[0] if reply else None for reply in definitive])
    yield quoted([_body(item) for item in items])


def _body(item: ChangeRow) -> str | None:
    """The body of a definitive reply, unless it is the event's own data."""
    if item.reply is None or item.reply.definitive is None:
        return None
    body = item.reply.definitive[1]
    return None if item.event_type is not None and body == item.event_data else body.decode()


def _ended_operation(change: Change) -> tuple[OperationId, str] | None:
    """The operation that the change tells something of, and its state."""
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


def _is_seldom(change: Change) -> bool:
    return change.refund is not None or change.requested is not None or _is_rare(change)


def _is_rare(change: Change) -> bool:
    return change.finding is not None or _seldom_changed(change.before) != _seldom_changed(change.after)


def _seldom_changed(payment: Payment) -> tuple[object, ...]:
    return (
        payment.late,
        payment.suspended,
        payment.decline_code,
        payment.did_check_again,
        payment.checks,
        payment.refunded_minor,
        payment.disputed_minor,
        payment.lost_minor,
        payment.capture_before,
        payment.pending,
        payment.is_warned,
        payment.release_at,
        payment.is_given_back,
        payment.pending_taken_minor,
        payment.fee_returned_minor,
        payment.psp_account_id,
        payment.expires_at,
        payment.risk,
    )


def _rare(items: Sequence[ChangeRow]) -> Iterator[str]:
    changes = [item.change for item in items if _is_rare(item.change)]
    after = [change.after for change in changes]
    pending = [payment.pending for payment in after]
    yield uuids([payment.id for payment in after])
    yield plain([payment.late for payment in after])
    yield plain([payment.suspended for payment in after])
    yield quoted([payment.decline_code for payment in after])
    yield plain([payment.did_check_again for payment in after])
    yield plain([payment.checks for payment in after])
    yield plain([payment.refunded_minor for payment in after])
    yield plain([payment.disputed_minor for payment in after])
    yield plain([payment.lost_minor for payment in after])
    yield times([payment.capture_before for payment in after])
    yield uuids([one.id if one else None for one in pending])
    yield plain([one.kind if one else None for one in pending])
    yield plain([one.amount_minor if one else None for one in pending])
    yield times([one.since if one else None for one in pending])
    yield plain([payment.is_warned for payment in after])
    yield times([payment.release_at for payment in after])
    yield plain([payment.is_given_back for payment in after])
    yield plain([payment.pending_taken_minor for payment in after])
    yield plain([payment.fee_returned_minor for payment in after])
    yield plain([change.finding for change in changes])
    yield uuids([payment.psp_account_id for payment in after])
    yield uuids([payment.operation_id for payment in after])
    yield times([payment.expires_at for payment in after])
    yield plain([payment.risk for payment in after])


def _requested(items: Sequence[ChangeRow]) -> Iterator[str]:
    rows: list[tuple[Payment, OperationId, OperationKind, int]] = []
    for change in (item.change for item in items):
        if change.requested is not None:
            amount = change.requested.amount_minor or change.after.money.amount_minor
            rows.append((change.after, change.requested.id, change.requested.kind, amount))
        if change.refund is not None and change.evidence.kind is EvidenceKind.REFUND_REQUESTED:
            refund = change.refund
            rows.append((change.after, OperationId(refund.id), OperationKind.REFUND, refund.money.amount_minor))
    yield uuids([payment.id for payment, _, _, _ in rows])
    yield uuids([operation_id for _, operation_id, _, _ in rows])
    yield plain([kind for _, _, kind, _ in rows])
    yield plain([amount for _, _, _, amount in rows])
    yield plain([payment.money.currency for payment, _, _, _ in rows])


def _refunds(items: Sequence[ChangeRow]) -> Iterator[str]:
    refunds = [item.change.refund for item in items if item.change.refund is not None]
    yield uuids([refund.payment_id for refund in refunds])
    yield uuids([refund.id for refund in refunds])
    yield uuids([refund.psp_account_id for refund in refunds])
    yield plain([refund.money.amount_minor for refund in refunds])
    yield plain([refund.money.currency for refund in refunds])
    yield plain([refund.status for refund in refunds])
    yield plain([refund.from_pending_minor for refund in refunds])
    yield plain([refund.fee_minor for refund in refunds])
    yield quoted([refund.reason for refund in refunds])
    yield quoted([refund.reference for refund in refunds])
    yield quoted([refund.failure_code for refund in refunds])
    yield plain([refund.is_accepted for refund in refunds])
    yield plain([refund.checks for refund in refunds])
    yield times([refund.due_at for refund in refunds])
    yield times([refund.created_at for refund in refunds])
    yield times([refund.updated_at for refund in refunds])


def _postings(items: Sequence[ChangeRow]) -> Iterator[str]:
    rows = [
        (item.change.after.id, item.transfer, posting)
        for item in items
        if item.transfer is not None
        for posting in item.transfer.postings
    ]
    yield uuids([payment_id for payment_id, _, _ in rows])
    yield uuids([transfer.id for _, transfer, _ in rows])
    yield plain([transfer.kind for _, transfer, _ in rows])
    yield plain([posting.account for _, _, posting in rows])
    yield plain([posting.money.currency for _, _, posting in rows])
    yield plain([posting.money.amount_minor for _, _, posting in rows])
