"""Payments and refunds as merchants see them."""

from datetime import datetime
from typing import Literal

import msgspec

PaymentStatus = Literal["PENDING", "AUTHORIZED", "SUCCEEDED", "DECLINED", "EXPIRED", "CANCELED", "UNKNOWN"]


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment. Amounts are in minor units: 1999 EUR is 19.99 €. `success` is 1 exactly where it is SUCCEEDED."""

    id: str
    object: Literal["payment"]
    status: PaymentStatus
    success: Literal[0, 1]
    amount: int
    currency: str
    captured_amount: int
    refunded_amount: int
    disputed_amount: int
    fee_amount: int
    capture: Literal["automatic", "manual"]
    capture_before: datetime | None
    pending_operation: str | None
    order_id: str
    description: str | None
    statement_descriptor: str | None
    metadata: dict[str, str]
    payment_url: str | None
    return_url: str | None
    decline_code: str | None
    did_check_again: bool
    late: bool
    risk: str | None
    expires_at: datetime
    created_at: datetime
    updated_at: datetime


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """A refund of a payment."""

    id: str
    object: Literal["refund"]
    payment_id: str
    status: Literal["PENDING", "SUCCEEDED", "FAILED", "UNKNOWN"]
    amount: int
    currency: str
    reason: str | None
    failure_code: str | None
    created_at: datetime
    updated_at: datetime
