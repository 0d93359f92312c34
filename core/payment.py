"""Payments: their fields, their statuses, and what a change carries.

Invariants: money is captured at most once (`captured_minor`); refunds, pending ones included, never exceed it (`refunded_minor`);
at most one operation on a payment is under way (`pending`). `disputed_minor` is held by open disputes, `lost_minor` was lost in
decided ones. `core.transition` changes payments; `core.schedule` says when a job must look at one.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import uuid5

import msgspec
from msgspec.structs import replace

from core.evidence import Evidence, EvidenceKind, Finding, Risk, Source
from core.ids import PAYMENT, MerchantId, OperationId, PaymentId, PspAccountId, RefundId, encode_id
from core.money import Money
from core.refund import Refund


class Status(StrEnum):
    """The status of a payment. `UNKNOWN`: the PSP was asked and the answer was lost."""

    PENDING = "PENDING"
    AUTHORIZED = "AUTHORIZED"
    SUCCEEDED = "SUCCEEDED"
    DECLINED = "DECLINED"
    EXPIRED = "EXPIRED"
    CANCELED = "CANCELED"
    UNKNOWN = "UNKNOWN"


FINAL = frozenset({Status.SUCCEEDED, Status.DECLINED, Status.EXPIRED, Status.CANCELED})
CLOSED = frozenset({Status.EXPIRED, Status.CANCELED})
UNSETTLED = frozenset({Status.PENDING, Status.UNKNOWN})


class Capture(StrEnum):
    """The time of the capture: at once by the PSP, or at the merchant's request."""

    AUTOMATIC = "automatic"
    MANUAL = "manual"


class OperationKind(StrEnum):
    """An operation at a PSP. INTENT opens a hosted page, CHARGE authorizes a token in the same request."""

    INTENT = "intent"
    CHARGE = "charge"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


class PendingOperation(msgspec.Struct, frozen=True, kw_only=True):
    """A capture or void that was committed and has not ended. `amount_minor` is set for a capture only."""

    id: OperationId
    kind: OperationKind
    amount_minor: int | None
    since: datetime


class PaysOnce(StrEnum):
    """For how long a paid payment keeps its order from being paid by another one."""

    ALWAYS = "always"
    UNLESS_REFUNDED = "unless_refunded"


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of a payment, fixed when it is made.

    The fee is `fee_basis_points` hundredths of a percent of the captured amount, rounded half up to a minor unit, plus
    `fee_fixed_minor`, and never exceeds the captured amount. It is kept after a refund unless `refunds_fee`. A charge is pending
    for `settlement_delay_seconds`, then available. With `refunds_late`, money that arrives after the payment was over is
    refunded. `pays_once`: once it is paid, no other payment of its order is accepted.
    """

    fee_basis_points: int = 0
    fee_fixed_minor: int = 0
    refunds_fee: bool = False
    settlement_delay_seconds: int = 0
    refunds_late: bool = False
    pays_once: PaysOnce | None = None

    def fee_minor(self, captured_minor: int) -> int:
        """The fee on an amount, in minor units."""
        share = (captured_minor * self.fee_basis_points + 5_000) // 10_000
        return min(share + self.fee_fixed_minor, captured_minor)


NO_TERMS = Terms()


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a payment. `version` counts its changes; `due_at` is when a job must look at it next.

    `release_at` is when its money becomes available, and None once it is. Refunds that did not fail have taken
    `pending_taken_minor` of the payment's own pending money and returned `fee_returned_minor` of its fee. `is_operators_word`:
    its status is what operators said, which the PSP's own word overrules; `from_suspense`: they have assigned money to it
    that was in suspense.
    """

    id: PaymentId
    merchant_id: MerchantId
    psp_account_id: PspAccountId
    operation_id: OperationId
    order_id: str
    money: Money
    status: Status
    version: int
    expires_at: datetime
    created_at: datetime
    updated_at: datetime
    due_at: datetime | None
    reference: str | None = None
    payment_url: str | None = None
    return_url: str | None = None
    description: str | None = None
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
    pending: PendingOperation | None = None
    is_warned: bool = False
    release_at: datetime | None = None
    is_given_back: bool = False
    pending_taken_minor: int = 0
    fee_returned_minor: int = 0
    capture: Capture = Capture.AUTOMATIC
    is_sync: bool = False
    is_exclusive: bool = False
    statement_descriptor: str | None = None
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    terms: Terms = NO_TERMS
    risk: Risk | None = None
    is_operators_word: bool = False
    from_suspense: bool = False

    @property
    def public_id(self) -> str:
        """The public form of the payment's id."""
        return encode_id(PAYMENT, self.id)

    @property
    def refundable_minor(self) -> int:
        """The amount that can still be refunded."""
        return max(self.captured_minor - self.refunded_minor - self.disputed_minor - self.lost_minor, 0)

    @property
    def unreleased_minor(self) -> int:
        """The payment's part of the merchant's pending wallet, unless other payments' refunds have used it."""
        if self.release_at is None:
            return 0
        return self.captured_minor - self.terms.fee_minor(self.captured_minor) - self.pending_taken_minor

    @property
    def late_refund_id(self) -> RefundId:
        """The id of the refund that returns late money. There is one, whoever begins it."""
        return RefundId(uuid5(self.id, "late"))

    @property
    def void_id(self) -> OperationId:
        """The id of the operation that voids the payment. A payment is voided once, so it is the same for every caller."""
        return OperationId(uuid5(self.id, "void"))


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a payment, written by compare-and-set on `before.version`.

    `requested` is an operation that the change begins; `refund` is the refund that changes with it, `refund_before` its previous
    state.
    """

    before: Payment
    after: Payment
    evidence: Evidence
    finding: Finding | None = None
    to_suspense: Money | None = None
    requested: PendingOperation | None = None
    refund: Refund | None = None
    refund_before: Refund | None = None

    @property
    def is_mismatch(self) -> bool:
        """Return whether the evidence did not belong to this payment, so that only a finding or suspense posting follows."""
        return self.finding is Finding.EVIDENCE_MISMATCH


def is_provisionally_declined(payment: Payment) -> bool:
    """Return whether a decline was reported that no fetch has confirmed yet."""
    return payment.status in UNSETTLED and payment.decline_code is not None


def captured(payment: Payment, amount_minor: int, *, now: datetime) -> Payment:
    """The payment once the PSP holds that much for it."""
    delay = payment.terms.settlement_delay_seconds
    return replace(
        payment,
        status=Status.SUCCEEDED,
        captured_minor=amount_minor,
        late=payment.status in CLOSED,
        decline_code=None,
        pending=None,
        checks=0,
        release_at=now + timedelta(seconds=delay) if delay else None,
    )


def evidence_about(
    payment: Payment,
    kind: EvidenceKind,
    source: Source,
    *,
    money: Money | None = None,
    code: str | None = None,
    requested_id: OperationId | None = None,
    refund_id: RefundId | None = None,
    rerouted_to: PspAccountId | None = None,
) -> Evidence:
    """Evidence from inside Florin: the end of our own call, a merchant's wish, the passing of time."""
    return Evidence(
        kind=kind,
        source=source,
        psp_account_id=payment.psp_account_id,
        operation_id=payment.operation_id,
        money=money,
        code=code,
        requested_id=requested_id,
        refund_id=refund_id,
        rerouted_to=rerouted_to,
    )
