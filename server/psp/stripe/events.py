"""Stripe's events: the webhook's signature, and the evidence in each event.

Events of objects that carry our metadata name their payment. Disputes, and refunds made at Stripe, do not: such a notice has the
PaymentIntent as its reference, and `StripeAdapter.resolve` fetches it. `charge.refunded` only says that there is something to
fetch. All other events are irrelevant.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec.structs import replace

from core.errors import InvalidSignature, Malformed, PspOutcomeUnknown
from core.evidence import Evidence, EvidenceKind, Source
from core.ids import MerchantId, OperationId, PaymentId, PspAccountId
from core.signing import verify_timestamped
from server.psp.adapter import Notice
from server.psp.stripe.objects import (
    Charge,
    Dispute,
    Name,
    PaymentIntent,
    Refund,
    Session,
    decline_code,
    dispute_evidence,
    ids_of,
    intent_evidence,
    refund_evidence,
    session_evidence,
)

SIGNATURE_HEADER = b"stripe-signature"
UNRESOLVED = UUID(int=0)
"""The operation and payment of evidence that does not name them yet."""

_NUL = b"\\u0000"
_INTENT_EVENTS = frozenset(
    f"payment_intent.{what}"
    for what in ("succeeded", "amount_capturable_updated", "canceled", "payment_failed", "requires_action")
)
_REFUND_EVENTS = frozenset({"refund.created", "refund.updated", "refund.failed", "charge.refund.updated"})
_DISPUTE_ENDS = {"won": EvidenceKind.DISPUTE_WON, "lost": EvidenceKind.DISPUTE_LOST}
RELEASED = "expired_uncaptured_charge"
"""The reason of a refund that is not one: an authorization has ended."""

RARE = ("refund.*", "charge.refunded", "charge.dispute.*")


class _Data(msgspec.Struct, frozen=True):
    object: msgspec.Raw


class Event(msgspec.Struct, frozen=True):
    """An event."""

    id: Name
    type: Annotated[str, msgspec.Meta(max_length=255)]
    data: _Data
    created: int = 0
    livemode: bool = False


def read(
    headers: Mapping[bytes, bytes], body: bytes, secrets: Sequence[str], account_id: PspAccountId, *, is_live: bool, now: float
) -> Notice:
    """Verify and decode a webhook. Raises `InvalidSignature` or `Malformed`."""
    signature = headers.get(SIGNATURE_HEADER)
    if signature is None:
        raise InvalidSignature("the Stripe-Signature header is missing")
    verify_timestamped(secrets, header=signature.decode("latin-1"), body=body, now=now)
    if _NUL in body:
        raise Malformed("an event of Stripe holds the character U+0000")
    try:
        return notice_of(msgspec.json.decode(body, type=Event), account_id, is_live=is_live)
    except msgspec.DecodeError as error:
        raise Malformed(f"not an event of Stripe: {error}") from error
    except PspOutcomeUnknown as error:
        raise Malformed(f"an impossible event of Stripe: {error}") from error


def notice_of(event: Event, account_id: PspAccountId, *, is_live: bool) -> Notice:
    """The notice of an event; empty for one of the other mode. Raises `PspOutcomeUnknown` or `msgspec.DecodeError`."""
    raw = event.data.object
    if event.livemode is not is_live:
        return _nothing(event)
    match event.type:
        case kind if kind in _INTENT_EVENTS:
            return _of_intent(event, msgspec.json.decode(raw, type=PaymentIntent), account_id)
        case "checkout.session.expired":
            session = msgspec.json.decode(raw, type=Session)
            ids = ids_of(session.metadata)
            if ids is None:
                return _nothing(event)
            return _about(event, ids[:2], session_evidence(session, account_id, ids[2], source=Source.WEBHOOK))
        case kind if kind in _REFUND_EVENTS:
            refund = msgspec.json.decode(raw, type=Refund)
            owner = ids_of(refund.metadata)
            if owner is not None:
                evidence = refund_evidence(refund, account_id, owner[1], owner[2], source=Source.WEBHOOK)
                return _about(event, owner[:2], evidence)
            if refund.payment_intent is None or refund.reason == RELEASED:
                return _nothing(event)
            unresolved = PaymentId(UNRESOLVED), OperationId(UNRESOLVED)
            return _to_resolve(
                event, refund.payment_intent, refund_evidence(refund, account_id, *unresolved, source=Source.WEBHOOK)
            )
        case "charge.refunded":
            return _to_resolve(event, msgspec.json.decode(raw, type=Charge).payment_intent)
        case "charge.dispute.created" | "charge.dispute.funds_withdrawn" | "charge.dispute.closed":
            dispute = msgspec.json.decode(raw, type=Dispute)
            end = _DISPUTE_ENDS.get(dispute.status) if event.type.endswith("closed") else EvidenceKind.DISPUTED
            if end is None or dispute.status.startswith("warning"):
                return _nothing(event)  # an inquiry: no money has moved
            evidence = dispute_evidence(dispute, end, account_id, OperationId(UNRESOLVED))
            return _to_resolve(event, dispute.payment_intent, evidence)
        case _:
            return _nothing(event)


def listed(event: Event, account_id: PspAccountId, *, is_live: bool) -> Notice:
    """The notice of an event in a list. An unreadable one carries its problem, so that it does not hide the others."""
    try:
        return notice_of(event, account_id, is_live=is_live)
    except (msgspec.DecodeError, PspOutcomeUnknown) as error:
        return replace(_nothing(event), problem=str(error))


def _of_intent(event: Event, intent: PaymentIntent, account_id: PspAccountId) -> Notice:
    ids = ids_of(intent.metadata)
    if ids is None:
        return _nothing(event)
    evidence = intent_evidence(intent, account_id, ids[2], source=Source.WEBHOOK)
    if event.type == "payment_intent.payment_failed" and evidence.kind is EvidenceKind.OPENED:
        evidence = Evidence(
            kind=EvidenceKind.ATTEMPT_FAILED,
            source=Source.WEBHOOK,
            psp_account_id=account_id,
            operation_id=ids[2],
            code=decline_code(intent.last_payment_error),
        )
    return _about(event, ids[:2], evidence)


def _about(event: Event, ids: tuple[UUID, UUID], evidence: Evidence) -> Notice:
    merchant_id, payment_id = ids
    return replace(_nothing(event), merchant_id=MerchantId(merchant_id), payment_id=PaymentId(payment_id), evidence=(evidence,))


def _to_resolve(event: Event, reference: str | None, *evidence: Evidence) -> Notice:
    return Notice(
        event_id=event.id,
        event_type=event.type,
        merchant_id=None,
        payment_id=None,
        evidence=evidence if reference is not None else (),
        reference=reference,
    )


def _nothing(event: Event) -> Notice:
    return Notice(event_id=event.id, event_type=event.type, merchant_id=None, payment_id=None)
