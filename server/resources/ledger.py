"""Adjustments and payouts as merchants see them."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from core import payout as payouts
from core.ids import ADJUSTMENT, PAYMENT, PAYOUT, encode_id
from core.money import Money
from server.resources.times import Time


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the available balance that is neither a payment's nor a payout's. `amount` is in minor units, negative if it
    was taken; `account` says what it is for.
    """

    id: str
    object: Literal["adjustment"]
    amount: int
    currency: str
    account: Literal["goodwill", "correction", "reserve", "fees", "suspense"]
    reason: str
    payment_id: str | None
    created_at: Time

    @classmethod
    def of(
        cls, adjustment_id: UUID, *, money: Money, account: str, reason: str, payment_id: UUID | None, created_at: datetime
    ) -> "Adjustment":
        """The document of an adjustment."""
        return cls(
            id=encode_id(ADJUSTMENT, adjustment_id),
            object="adjustment",
            amount=money.amount_minor,
            currency=money.currency,
            account=account,  # type: ignore[arg-type] # of ADJUSTMENT_ACCOUNTS
            reason=reason,
            payment_id=encode_id(PAYMENT, payment_id) if payment_id is not None else None,
            created_at=created_at,
        )


class Payout(msgspec.Struct, frozen=True, kw_only=True):
    """A payout to the merchant's bank. `reference` is the bank's."""

    id: str
    object: Literal["payout"]
    status: Literal["PENDING", "SUCCEEDED", "FAILED"]
    amount: int
    currency: str
    reference: str | None
    failure: str | None
    created_at: Time
    updated_at: Time

    @classmethod
    def of(cls, payout: payouts.Payout) -> "Payout":
        """The document of a payout."""
        return cls(
            id=encode_id(PAYOUT, payout.id),
            object="payout",
            status=payout.status.value,
            amount=payout.money.amount_minor,
            currency=payout.money.currency,
            reference=payout.reference,
            failure=payout.failure,
            created_at=payout.created_at,
            updated_at=payout.updated_at,
        )
