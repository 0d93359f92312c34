"""The parts of Stripe's objects that Florin reads, its amounts and codes, and the evidence that each object gives.

Source: Stripe's API reference, version `API_VERSION`. Our ids are in the metadata of every object that we create. A hosted
payment's reference is its Checkout Session, because Stripe creates the PaymentIntent only when the customer pays; evidence of
that PaymentIntent then carries no reference.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from core.errors import InvalidMoney, PspOutcomeUnknown
from core.evidence import Evidence, EvidenceKind, Source
from core.ids import MerchantId, OperationId, PaymentId, PspAccountId, RefundId
from core.money import CURRENCY_EXPONENTS, Money
from core.payment import Payment
from core.refund import made_at_the_psp

API_VERSION = "2025-03-31.basil"
_REFUSED_IN_DESCRIPTORS = str.maketrans("", "", "<>\\'\"*")
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]

EXPONENTS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("ISK", "UGX"), 2),
}
"""The decimals of Stripe's amounts in currencies where they are neither ISO 4217's nor 2 (docs: currencies)."""

_ROUND_TO_TEN = frozenset({"BHD", "JOD", "KWD", "OMR", "TND"})

DECLINE_CODES = {
    "insufficient_funds": "insufficient_funds",
    "expired_card": "expired_card",
    "incorrect_cvc": "incorrect_cvc",
    "invalid_cvc": "incorrect_cvc",
    "incorrect_number": "incorrect_number",
    "invalid_number": "incorrect_number",
    "processing_error": "processing_error",
    "authentication_required": "authentication_required",
    "payment_intent_authentication_failure": "authentication_failed",
    "card_velocity_exceeded": "card_velocity_exceeded",
    "currency_not_supported": "currency_not_supported",
    **dict.fromkeys(("lost_card", "stolen_card", "pickup_card", "restricted_card", "fraudulent"), "card_blocked"),
}
"""Our decline codes by Stripe's. All others are `card_declined`."""


_TOKEN_CODES = frozenset({"token_already_used", "token_in_use", "payment_method_unexpected_state"})


class ApiError(msgspec.Struct, frozen=True):
    """The error of a response."""

    type: str = ""
    code: str | None = None
    decline_code: str | None = None
    param: str | None = None
    payment_intent: "PaymentIntent | None" = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of an unsuccessful response."""

    error: ApiError = ApiError()


class _Redirect(msgspec.Struct, frozen=True):
    url: str | None = None


class _NextAction(msgspec.Struct, frozen=True):
    redirect_to_url: _Redirect | None = None


class PaymentIntent(msgspec.Struct, frozen=True):
    """A PaymentIntent."""

    id: Name
    status: str
    amount: int
    currency: str
    created: int = 0
    metadata: dict[str, str] | None = None
    amount_received: int | None = None
    latest_charge: Any = None
    last_payment_error: ApiError | None = None
    next_action: _NextAction | None = None
    cancellation_reason: str | None = None


class Session(msgspec.Struct, frozen=True):
    """A Checkout Session. Its PaymentIntent is expanded, or does not exist yet."""

    id: Name
    status: str | None
    created: int = 0
    url: str | None = None
    metadata: dict[str, str] | None = None
    payment_intent: PaymentIntent | str | None = None


class Refund(msgspec.Struct, frozen=True):
    """A refund."""

    id: Name
    amount: int
    currency: str
    status: str | None
    metadata: dict[str, str] | None = None
    payment_intent: str | None = None
    failure_reason: str | None = None
    reason: str | None = None


class Dispute(msgspec.Struct, frozen=True):
    """A dispute."""

    id: Name
    amount: int
    currency: str
    status: str
    payment_intent: str | None = None


class Charge(msgspec.Struct, frozen=True):
    """The part of a charge that identifies its payment."""

    id: Name
    payment_intent: str | None = None


class Listed(msgspec.Struct, frozen=True):
    """A page of any list."""

    data: list[msgspec.Raw]
    has_more: bool = False


def exponent(currency: str) -> int | None:
    """The decimals of Stripe's amounts in a currency; None for an unknown one."""
    return EXPONENTS.get(currency, CURRENCY_EXPONENTS.get(currency))


def to_stripe(money: Money) -> int | None:
    """The amount as Stripe writes it; None if Stripe cannot take it."""
    decimals = exponent(money.currency)
    if decimals is None:
        return None
    scaled = Decimal(money.amount_minor).scaleb(decimals - CURRENCY_EXPONENTS[money.currency])
    amount = int(scaled)
    too_fine = money.currency in _ROUND_TO_TEN and amount % 10 != 0
    return None if amount != scaled or too_fine or amount <= 0 else amount


def from_stripe(amount: int, currency: str) -> Money:
    """The money of one of Stripe's amounts. Raises `PspOutcomeUnknown` for an impossible one."""
    name = currency.upper()
    decimals = exponent(name)
    if decimals is None:
        raise PspOutcomeUnknown(f"Stripe reports an unknown currency: {currency!r:.20}")
    scaled = Decimal(amount).scaleb(CURRENCY_EXPONENTS[name] - decimals)
    if scaled != int(scaled):
        raise PspOutcomeUnknown(f"Stripe reports an amount that is finer than {name}: {amount}")
    try:
        return Money(int(scaled), name)
    except InvalidMoney as error:
        raise PspOutcomeUnknown(f"Stripe reports an impossible amount: {error}") from error


def metadata_of(payment: Payment) -> dict[str, str]:
    """The metadata of every object that we create at Stripe."""
    return {
        "florin_merchant": str(payment.merchant_id),
        "florin_payment": str(payment.id),
        "florin_operation": str(payment.operation_id),
        "florin_kind": "token" if payment.is_sync else "page",
    }


def ids_of(metadata: dict[str, str] | None) -> tuple[MerchantId, PaymentId, OperationId] | None:
    """The ids in an object's metadata; None if it is not ours."""
    given = metadata or {}
    try:
        merchant, payment = UUID(given["florin_merchant"]), UUID(given["florin_payment"])
        return MerchantId(merchant), PaymentId(payment), OperationId(UUID(given["florin_operation"]))
    except (KeyError, ValueError):
        return None


def is_about_token(body: ErrorBody) -> bool:
    """Return whether Stripe refused a PaymentIntent because it does not know the token, or no longer takes it.

    Sources: the error codes `resource_missing`, `token_already_used`, `token_in_use` and `payment_method_unexpected_state`.
    """
    error = body.error
    return error.code in _TOKEN_CODES or (error.code == "resource_missing" and (error.param or "").startswith("payment_method"))


def decline_code(error: ApiError | None) -> str:
    """Our decline code for Stripe's."""
    if error is None:
        return "card_declined"
    return DECLINE_CODES.get(error.decline_code or "") or DECLINE_CODES.get(error.code or "") or "card_declined"


def intent_evidence(
    intent: PaymentIntent, account_id: PspAccountId, operation_id: OperationId, *, source: Source, reference: str | None = None
) -> Evidence:
    """The evidence of a PaymentIntent's state; `reference` is that of its Checkout Session, if any. Raises
    `PspOutcomeUnknown`.
    """
    is_page = (intent.metadata or {}).get("florin_kind") == "page"
    kind, amount, code = _stands(intent, is_page=is_page)
    redirect = intent.next_action.redirect_to_url if intent.next_action else None
    return Evidence(
        kind=kind,
        source=source,
        psp_account_id=account_id,
        operation_id=operation_id,
        reference=reference if is_page else intent.id,
        payment_url=redirect.url if redirect is not None and not is_page and source is not Source.WEBHOOK else None,
        money=from_stripe(amount, intent.currency) if amount is not None else None,
        code=code,
        capture_before=_capture_before(intent) if kind is EvidenceKind.AUTHORIZED else None,
    )


def _stands(intent: PaymentIntent, *, is_page: bool) -> tuple[EvidenceKind, int | None, str | None]:
    match intent.status:
        case "succeeded":
            return EvidenceKind.CAPTURED, intent.amount if intent.amount_received is None else intent.amount_received, None
        case "requires_capture":
            return EvidenceKind.AUTHORIZED, intent.amount, None
        case "requires_payment_method" if intent.last_payment_error is not None and not is_page:
            return EvidenceKind.DECLINED, None, decline_code(intent.last_payment_error)
        case "requires_payment_method" | "requires_confirmation" | "requires_action" | "processing":
            return EvidenceKind.OPENED, None, None
        case "canceled":
            is_late = intent.cancellation_reason in ("automatic", "expired")
            return (EvidenceKind.EXPIRED if is_late else EvidenceKind.CANCELED), None, None
        case _:
            raise PspOutcomeUnknown(f"Stripe reports an unknown status: {intent.status!r:.40}")


def _capture_before(intent: PaymentIntent) -> datetime | None:
    charge = intent.latest_charge
    details = charge.get("payment_method_details") if isinstance(charge, dict) else None
    card = details.get("card") if isinstance(details, dict) else None
    seconds = card.get("capture_before") if isinstance(card, dict) else None
    return moment(seconds) if isinstance(seconds, int) else None


def session_evidence(session: Session, account_id: PspAccountId, operation_id: OperationId, *, source: Source) -> Evidence:
    """The evidence of a Checkout Session's state, with its PaymentIntent if any. Raises `PspOutcomeUnknown`."""
    intent = session.payment_intent
    if isinstance(intent, PaymentIntent):
        of_intent = intent_evidence(intent, account_id, operation_id, source=source, reference=session.id)
        if of_intent.kind is not EvidenceKind.OPENED:
            return of_intent
        if session.status == "complete" and intent.status == "requires_payment_method":
            code = decline_code(intent.last_payment_error)  # the page takes no other card any more
            return replace(of_intent, kind=EvidenceKind.DECLINED, code=code, payment_url=None)
    kind = EvidenceKind.EXPIRED if session.status == "expired" else EvidenceKind.OPENED
    return Evidence(
        kind=kind,
        source=source,
        psp_account_id=account_id,
        operation_id=operation_id,
        reference=session.id,
        payment_url=session.url if kind is EvidenceKind.OPENED else None,
    )


_REFUND_KINDS = {
    "succeeded": EvidenceKind.REFUND_SUCCEEDED,
    "pending": EvidenceKind.REFUND_PENDING,
    "requires_action": EvidenceKind.REFUND_PENDING,
    "failed": EvidenceKind.REFUND_FAILED,
    "canceled": EvidenceKind.REFUND_FAILED,
}


def refund_evidence(
    refund: Refund, account_id: PspAccountId, payment_id: PaymentId, operation_id: OperationId, *, source: Source
) -> Evidence:
    """The evidence of a refund's state, whether ours by its metadata or made at Stripe. Raises `PspOutcomeUnknown`."""
    kind = _REFUND_KINDS.get(refund.status or "")
    if kind is None:
        raise PspOutcomeUnknown(f"Stripe reports an unknown status of a refund: {refund.status!r:.40}")
    return Evidence(
        kind=kind,
        source=source,
        psp_account_id=account_id,
        operation_id=operation_id,
        reference=refund.id,
        money=from_stripe(refund.amount, refund.currency),
        code=(refund.failure_reason or "failed_at_the_psp")[:100] if kind is EvidenceKind.REFUND_FAILED else None,
        refund_id=_refund_id(refund, payment_id),
    )


def _refund_id(refund: Refund, payment_id: PaymentId) -> RefundId:
    try:
        return RefundId(UUID((refund.metadata or {})["florin_refund"]))
    except (KeyError, ValueError):
        return made_at_the_psp(payment_id, refund.id)


def dispute_evidence(dispute: Dispute, kind: EvidenceKind, account_id: PspAccountId, operation_id: OperationId) -> Evidence:
    """The evidence of a dispute's event."""
    return Evidence(
        kind=kind,
        source=Source.WEBHOOK,
        psp_account_id=account_id,
        operation_id=operation_id,
        reference=dispute.id,
        money=from_stripe(dispute.amount, dispute.currency),
    )


def moment(seconds: int) -> datetime:
    """One of Stripe's times. Raises `PspOutcomeUnknown`."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise PspOutcomeUnknown(f"Stripe reports an impossible time: {error}") from error


def descriptor_suffix(text: str | None) -> str | None:
    """The part of a statement descriptor that Stripe accepts: no `< > \\ ' " *`, and at least one letter."""
    kept = (text or "").translate(_REFUSED_IN_DESCRIPTORS).strip()
    return kept if any(character.isalpha() for character in kept) else None
