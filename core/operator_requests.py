"""The requests of operators about money: each a document, carried out by a worker, and where it posts money, after another
operator has approved it.

Invariants: a request is carried out at most once; whatever it posts has an id that is derived from the request's.
"""

from typing import Literal
from uuid import UUID

import msgspec

from core.errors import Unprocessable
from core.ids import PAYMENT, REFUND, encode_id
from core.ledger import CORRECTIONS, GOODWILL, PLATFORM_FEES, RESERVE
from core.money import Money

EXPIRES_AFTER_DAYS = 7
"""The time after which a request that nobody has approved ends."""

REASON_LENGTH_MAX = 500
ADJUSTMENT_ACCOUNTS = {
    "goodwill": GOODWILL,
    "correction": CORRECTIONS,
    "reserve": RESERVE,
    "fees": PLATFORM_FEES,
}
"""The other account of an adjustment, by the name that operators use."""


class _Document(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    pass


class ResolvePayment(_Document, frozen=True, tag="resolve_payment", kw_only=True):
    """The outcome of a payment of which the PSP has not told. `takes_back`: operators have said before that it was captured."""

    outcome: Literal["captured", "not_charged"]
    reference: str | None = None
    takes_back: bool = False


class ResolveRefund(_Document, frozen=True, tag="resolve_refund", kw_only=True):
    """The outcome of a refund of which the PSP has not told."""

    refund_id: UUID
    outcome: Literal["succeeded", "failed"]
    reference: str | None = None


class RefundPayment(_Document, frozen=True, tag="refund", kw_only=True):
    """A refund by an operator. `is_large`: with what was refunded before it exceeds what one operator may refund."""

    amount_minor: int
    is_large: bool = False


class MoveSuspense(_Document, frozen=True, tag="suspense", kw_only=True):
    """The way of money out of a payment's suspense: back to the PSP, to the merchant's wallet, or to the payment `payment_id`."""

    transfer_id: UUID
    to: Literal["psp", "wallet", "payment"]
    payment_id: UUID | None = None
    reference: str | None = None


class Adjust(_Document, frozen=True, tag="adjust", kw_only=True):
    """A transfer between the merchant's available wallet and one of `ADJUSTMENT_ACCOUNTS`; positive amounts credit the wallet."""

    amount_minor: int
    currency: str
    account: str


Document = ResolvePayment | ResolveRefund | RefundPayment | MoveSuspense | Adjust


def needs_approval(document: Document) -> bool:
    """Return whether another operator has to approve: what posts money does, and a refund only if it is large."""
    match document:
        case ResolvePayment():
            return document.outcome == "captured" or document.takes_back
        case ResolveRefund():
            return document.outcome == "failed"
        case RefundPayment():
            return document.is_large
        case MoveSuspense() | Adjust():
            return True


def described(document: Document) -> str:
    """The request in words, for whoever has to approve it."""
    match document:
        case ResolvePayment():
            what = "resolve as captured" if document.outcome == "captured" else "resolve as not charged"
            return _with_reference(
                what + (", taking back that it was captured" if document.takes_back else ""), document.reference
            )
        case ResolveRefund():
            return _with_reference(
                f"resolve refund {encode_id(REFUND, document.refund_id)} as {document.outcome}", document.reference
            )
        case RefundPayment():
            return f"refund {document.amount_minor:,} (minor units)"
        case MoveSuspense():
            to = {"psp": "back to the PSP", "wallet": "to the wallet", "payment": "to another payment"}[document.to]
            named = f" {encode_id(PAYMENT, document.payment_id)}" if document.payment_id is not None else ""
            return _with_reference(f"move suspense {to}{named}", document.reference)
        case Adjust():
            return f"adjust by {Money(document.amount_minor, document.currency)}, {document.account}"


def _with_reference(text: str, reference: str | None) -> str:
    return f"{text}, reference {reference}" if reference else text


def require_reason(text: str) -> str:
    """The reason of an act. Raises `Unprocessable`."""
    reason = text.strip()
    if not 1 <= len(reason) <= REASON_LENGTH_MAX or not reason.isprintable():
        raise Unprocessable(f"--reason takes 1 to {REASON_LENGTH_MAX} printable characters")
    return reason
