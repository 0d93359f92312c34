"""What Florin asks of a PSP, whoever it is.

Every answer is `Evidence` about one operation, so that all of them meet in the one transition function. The operation's id is the
PSP's idempotency key and goes into the PSP object's metadata, so that an operation whose answer was lost can be found again.
Callers own the deadlines; a call that is cancelled may have taken place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from core.evidence import Evidence, EvidenceKind, Source
from core.ids import MerchantId, PaymentId, PspAccountId
from core.payment import Payment, PendingOperation
from core.refund import Refund


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A webhook of a PSP, verified and read. `evidence` is what it says, in order; empty for a type that is of no concern."""

    event_id: str
    event_type: str
    merchant_id: MerchantId
    payment_id: PaymentId
    evidence: tuple[Evidence, ...]


class Adapter(Protocol):
    """One account at one PSP."""

    psp: str
    account_id: PspAccountId

    async def create_intent(self, payment: Payment) -> Evidence:
        """Open a hosted page for the payment; repeating it changes nothing.

        Raises `PspUnreachable`, `PspOutcomeUnknown` or `PspRejected`.
        """
        ...

    async def charge(self, payment: Payment, token: str) -> Evidence:
        """Authorize the PSP's token, and capture where the payment says so; repeating it changes nothing.

        The answer is AUTHORIZED, CAPTURED or DECLINED. Raises `PspUnreachable`, `PspOutcomeUnknown` or `PspRejected`.
        """
        ...

    async def capture(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """Take the operation's amount of what is authorized; the PSP releases the rest. Repeating it changes nothing.

        Raises `PspUnreachable`, `PspOutcomeUnknown` or `PspRejected`.
        """
        ...

    async def void(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """Release what is authorized; the answer is CANCELED, or what had ended it before. Raises like `capture`."""
        ...

    async def refund(self, payment: Payment, refund: Refund) -> Evidence:
        """Give money back; the refund's id is the PSP's key, so repeating it changes nothing.

        The answer is REFUND_SUCCEEDED, REFUND_PENDING or REFUND_FAILED. Raises like `capture`.
        """
        ...

    async def fetch_refund(self, payment: Payment, refund: Refund, *, source: Source) -> Evidence:
        """How a refund stands at the PSP, REFUND_NOT_FOUND included. Raises `PspError`: nothing was learned."""
        ...

    async def fetch(self, payment: Payment, *, source: Source) -> Evidence:
        """How the payment's operation stands at the PSP, NOT_FOUND included.

        Raises `PspError`: nothing was learned.
        """
        ...

    async def close(self, payment: Payment, *, as_kind: EvidenceKind, source: Source) -> Evidence:
        """Close the hosted page so that it can no longer be paid, and say how the operation stands then.

        `as_kind` is EXPIRED or CANCELED; if the customer was faster, the answer is CAPTURED or AUTHORIZED. Raises `PspError`.
        """
        ...

    def read_webhook(self, headers: Mapping[bytes, bytes], body: bytes, *, now: float) -> Notice:
        """Verify and read a webhook. Raises `InvalidSignature`, or `Malformed` for a signed body that cannot be read."""
        ...
