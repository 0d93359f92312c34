"""The sandbox PSP's objects, and the evidence that each of them gives."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import msgspec

from core.errors import InvalidMoney, PspOutcomeUnknown
from core.evidence import Evidence, EvidenceKind, Source
from core.ids import MerchantId, OperationId, PaymentId, PspAccountId, RefundId
from core.money import Money
from core.refund import made_at_the_psp
from server.psp.adapter import Notice, Seen

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]

_KIND_BY_STATUS = {
    "open": EvidenceKind.OPENED,
    "authorized": EvidenceKind.AUTHORIZED,
    "captured": EvidenceKind.CAPTURED,
    "declined": EvidenceKind.DECLINED,
    "expired": EvidenceKind.EXPIRED,
    "canceled": EvidenceKind.CANCELED,
}
_REFUND_KINDS = {
    "succeeded": EvidenceKind.REFUND_SUCCEEDED,
    "pending": EvidenceKind.REFUND_PENDING,
    "failed": EvidenceKind.REFUND_FAILED,
}
_DISPUTE_KINDS = {
    "dispute.opened": EvidenceKind.DISPUTED,
    "dispute.won": EvidenceKind.DISPUTE_WON,
    "dispute.lost": EvidenceKind.DISPUTE_LOST,
}
_OF_THE_INTENT = frozenset(f"intent.{end}" for end in ("captured", "expired", "canceled", "declined", "authorized"))
_REFUSALS = frozenset({EvidenceKind.ATTEMPT_FAILED, EvidenceKind.DECLINED})


UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - the code of an error


class Refusal(msgspec.Struct, frozen=True):
    """The body of a refused request. Only its code is passed on, because its text may repeat what must not be logged."""

    code: str | None = None


class Intent(msgspec.Struct, frozen=True):
    """A payment intent. `refunds` are keyed by Florin's id, or by the PSP's own for those made there."""

    id: Name
    status: str
    amount_minor: int
    currency: str
    payment_url: str
    merchant_id: UUID
    payment_id: UUID
    operation_id: UUID
    created: int = 0
    last_decline_code: str | None = None
    captured_minor: int = 0
    capture_before: int | None = None
    refunds: dict[Name, "_Refund"] = {}
    dispute: "_Dispute | None" = None


class _Refund(msgspec.Struct, frozen=True):
    amount_minor: int
    status: str


class _Dispute(msgspec.Struct, frozen=True):
    id: Name
    amount_minor: int


class IntentList(msgspec.Struct, frozen=True):
    """A page of intents."""

    data: list[Intent]


class Event(msgspec.Struct, frozen=True):
    """An event. `data` is the intent as it was then, or the object of another event type."""

    id: Name
    type: Annotated[str, msgspec.Meta(max_length=255)]
    data: msgspec.Raw


class EventList(msgspec.Struct, frozen=True):
    """A page of events, oldest first."""

    data: list[Event]
    has_more: bool = False


def notice_of(event: Event, account_id: PspAccountId) -> Notice:
    """The notice of an event. Raises `PspOutcomeUnknown` or `msgspec.DecodeError` for an impossible one."""
    is_known = event.type in _OF_THE_INTENT | {"intent.attempt_failed", "refund.updated"} | _DISPUTE_KINDS.keys()
    if not is_known:
        return Notice(event_id=event.id, event_type=event.type, merchant_id=None, payment_id=None)
    intent = msgspec.json.decode(event.data, type=Intent)
    return Notice(
        event_id=event.id,
        event_type=event.type,
        merchant_id=MerchantId(intent.merchant_id),
        payment_id=PaymentId(intent.payment_id),
        evidence=_evidence_of_event(event.type, intent, account_id),
    )


def listed(event: Event, account_id: PspAccountId) -> Notice:
    """The notice of an event in a list. An unreadable one carries its problem, so that it does not hide the others."""
    try:
        return notice_of(event, account_id)
    except (msgspec.DecodeError, PspOutcomeUnknown) as error:
        return Notice(event_id=event.id, event_type=event.type, merchant_id=None, payment_id=None, problem=str(error))


def seen(intent: Intent, account_id: PspAccountId) -> Seen:
    """An intent of the PSP's list."""
    return Seen(
        merchant_id=MerchantId(intent.merchant_id),
        payment_id=PaymentId(intent.payment_id),
        evidence=evidence_of(intent, account_id, source=Source.RECHECK),
        created_at=_moment(intent.created),
    )


def _evidence_of_event(event_type: str, intent: Intent, account_id: PspAccountId) -> tuple[Evidence, ...]:
    match event_type:
        case "intent.attempt_failed":
            return (evidence_of(intent, account_id, source=Source.WEBHOOK, kind=EvidenceKind.ATTEMPT_FAILED),)
        case "refund.updated":
            return tuple(refund_evidence(intent, name, account_id, source=Source.WEBHOOK) for name in intent.refunds)
        case _ if event_type in _DISPUTE_KINDS:
            if intent.dispute is None:
                raise PspOutcomeUnknown("an event of a dispute without a dispute")
            return (_dispute_evidence(intent, intent.dispute, _DISPUTE_KINDS[event_type], account_id),)
        case _:
            return (evidence_of(intent, account_id, source=Source.WEBHOOK),)


def evidence_of(intent: Intent, account_id: PspAccountId, *, source: Source, kind: EvidenceKind | None = None) -> Evidence:
    """The evidence of an intent's state. Raises `PspOutcomeUnknown` for an impossible one."""
    kind = kind or _KIND_BY_STATUS.get(intent.status)
    if kind is None:
        raise PspOutcomeUnknown(f"the sandbox PSP reports an unknown status: {intent.status!r}")
    held_minor = {EvidenceKind.AUTHORIZED: intent.amount_minor, EvidenceKind.CAPTURED: intent.captured_minor}.get(kind)
    is_dated = kind is EvidenceKind.AUTHORIZED and intent.capture_before is not None
    return Evidence(
        kind=kind,
        source=source,
        psp_account_id=account_id,
        operation_id=OperationId(intent.operation_id),
        reference=intent.id,
        payment_url=intent.payment_url if source is not Source.WEBHOOK and kind is not EvidenceKind.DECLINED else None,
        money=_money(held_minor, intent.currency) if held_minor is not None else None,
        code=intent.last_decline_code if kind in _REFUSALS else None,
        capture_before=_moment(intent.capture_before or 0) if is_dated else None,
    )


def refund_evidence(intent: Intent, name: str, account_id: PspAccountId, *, source: Source) -> Evidence:
    """The evidence of a refund's state, by its name at the PSP. Raises `PspOutcomeUnknown`."""
    refund = intent.refunds.get(name)
    kind = _REFUND_KINDS.get(refund.status) if refund else None
    if refund is None or kind is None:
        raise PspOutcomeUnknown("the sandbox PSP answered without a readable refund")
    return Evidence(
        kind=kind,
        source=source,
        psp_account_id=account_id,
        operation_id=OperationId(intent.operation_id),
        reference=name,
        money=_money(refund.amount_minor, intent.currency),
        code="failed_at_the_psp" if kind is EvidenceKind.REFUND_FAILED else None,
        refund_id=_refund_id(PaymentId(intent.payment_id), name),
    )


def _refund_id(payment_id: PaymentId, name: str) -> RefundId:
    """Our refund's id, or our id for a refund made at the PSP."""
    try:
        return RefundId(UUID(name))
    except ValueError:
        return made_at_the_psp(payment_id, name)


def _dispute_evidence(intent: Intent, dispute: _Dispute, kind: EvidenceKind, account_id: PspAccountId) -> Evidence:
    return Evidence(
        kind=kind,
        source=Source.WEBHOOK,
        psp_account_id=account_id,
        operation_id=OperationId(intent.operation_id),
        reference=dispute.id,
        money=_money(dispute.amount_minor, intent.currency),
    )


def _money(amount_minor: int, currency: str) -> Money:
    try:
        return Money(amount_minor, currency)
    except InvalidMoney as error:
        raise PspOutcomeUnknown(f"the sandbox PSP reports an impossible amount: {error}") from error


def _moment(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise PspOutcomeUnknown(f"the sandbox PSP reports an impossible time: {error}") from error
