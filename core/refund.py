"""Refunds: money that goes back to a customer, each a row of its own.

Invariants: the refund's id is its operation's id and therefore the PSP's idempotency key. The merchant's wallet is debited when
the refund is accepted, before the PSP is asked, and credited again if the PSP fails it, even after it had succeeded.
`core.refund_transition` changes refunds.
"""

from datetime import datetime
from enum import StrEnum
from uuid import uuid5

import msgspec

from core.ids import REFUND, MerchantId, PaymentId, PspAccountId, RefundId, encode_id
from core.money import Money


class RefundStatus(StrEnum):
    """The status of a refund. `UNKNOWN`: the PSP was asked and the answer was lost."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


def made_at_the_psp(payment_id: PaymentId, reference: str) -> RefundId:
    """Our id for a refund made at the PSP itself, which calls it `reference`."""
    return RefundId(uuid5(payment_id, reference))


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a refund.

    `from_pending_minor` of it came from the merchant's pending wallet and the rest from the available one, which got `fee_minor`
    back. `is_accepted`: the PSP has accepted it and will report its end. `due_at` is when a job must look at it next.
    `is_operators_word` as for payments.
    """

    id: RefundId
    merchant_id: MerchantId
    payment_id: PaymentId
    psp_account_id: PspAccountId
    money: Money
    status: RefundStatus
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    from_pending_minor: int = 0
    fee_minor: int = 0
    reason: str | None = None
    reference: str | None = None
    failure_code: str | None = None
    is_accepted: bool = False
    checks: int = 0
    is_operators_word: bool = False

    @property
    def public_id(self) -> str:
        """The public form of the refund's id."""
        return encode_id(REFUND, self.id)

    @property
    def is_open(self) -> bool:
        """True until its outcome is known."""
        return self.status in (RefundStatus.PENDING, RefundStatus.UNKNOWN)
