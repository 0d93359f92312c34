"""Payouts: a merchant's available money on its way to its bank.

One operator requests a payout and another approves it. Its money is in transit until the bank confirms or rejects it; a bank may
return money that it had accepted. Invariants: a payout never takes more than is available, so there is none while the balance is
negative; each step is posted once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from core.errors import Conflict
from core.ids import MerchantId, PayoutId
from core.ledger import BANK, PAYOUTS_IN_TRANSIT, Transfer, TransferKind, WalletKind, transfer
from core.money import Money
from core.refund_transition import Balances


class PayoutStatus(StrEnum):
    """The status of a payout."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


PAYOUT_TRANSITIONS: Mapping[PayoutStatus, frozenset[PayoutStatus]] = {
    PayoutStatus.PENDING: frozenset({PayoutStatus.SUCCEEDED, PayoutStatus.FAILED}),
    PayoutStatus.SUCCEEDED: frozenset({PayoutStatus.FAILED}),
    PayoutStatus.FAILED: frozenset(),
}
"""The statuses that may follow each status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payout:
    """The state of a payout. Operators go by the names they give."""

    id: PayoutId
    merchant_id: MerchantId
    money: Money
    status: PayoutStatus
    requested_by: str
    approved_by: str | None
    reference: str | None
    failure: str | None
    created_at: datetime
    updated_at: datetime


def request_payout(payout: Payout, balances: Balances) -> Transfer:
    """The transfer that sets the money aside. Raises `Conflict` with the code `insufficient_balance`."""
    amount = payout.money.amount_minor
    if amount > balances.available_minor:
        available = Money(balances.available_minor, payout.money.currency)
        raise Conflict(f"only {available} is available for a payout", code="insufficient_balance")
    amounts = {WalletKind.AVAILABLE.value: -amount, PAYOUTS_IN_TRANSIT: amount}
    return transfer(payout.id, TransferKind.PAYOUT, payout.money.currency, **amounts)


def approve_payout(payout: Payout, balances: Balances, *, operator: str, now: datetime) -> Payout:
    """Return the approved payout. Raises `Conflict` if its status, the operator or the balance does not allow it."""
    if payout.status is not PayoutStatus.PENDING or payout.approved_by is not None:
        said = f", approved by {payout.approved_by}" if payout.approved_by else ""
        raise Conflict(f"this payout is {payout.status}{said}", code="not_approvable")
    if operator == payout.requested_by:
        raise Conflict(f"{operator} requested this payout, so another operator has to approve it", code="four_eyes")
    if balances.available_minor < 0:
        raise Conflict("the merchant's balance is negative: wait until it is not", code="insufficient_balance")
    return replace(payout, approved_by=operator, updated_at=now)


def end_payout(
    payout: Payout, end: PayoutStatus, *, reference: str | None, failure: str | None, now: datetime
) -> tuple[Payout, Transfer]:
    """Return the payout after the bank's answer, and the transfer that follows. Raises `Conflict` if its status does not allow
    it.
    """
    if end not in PAYOUT_TRANSITIONS[payout.status]:
        raise Conflict(f"a payout that is {payout.status} cannot become {end}", code="illegal_transition")
    if end is PayoutStatus.SUCCEEDED and payout.approved_by is None:
        raise Conflict("this payout has not been approved", code="not_approved")
    amount = payout.money.amount_minor
    held_in = PAYOUTS_IN_TRANSIT if payout.status is PayoutStatus.PENDING else BANK
    kind, to = {
        PayoutStatus.SUCCEEDED: (TransferKind.PAYOUT_SUCCESS, BANK),
        PayoutStatus.FAILED: (TransferKind.PAYOUT_REVERSAL, WalletKind.AVAILABLE.value),
    }[end]
    moved = transfer(payout.id, kind, payout.money.currency, **{held_in: -amount, to: amount})
    after = replace(payout, status=end, reference=reference or payout.reference, failure=failure, updated_at=now)
    return after, moved
