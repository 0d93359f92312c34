"""Identifiers: UUIDv7 values made by the caller, and their public text form.

A public identifier is a prefix that names its kind, followed by the UUID's 32 hexadecimal digits: `pay_0198c5...`.
"""

import re
from typing import NewType
from uuid import UUID

from core.errors import InvalidId

MerchantId = NewType("MerchantId", UUID)
PaymentId = NewType("PaymentId", UUID)
OperationId = NewType("OperationId", UUID)
ResourceId = NewType("ResourceId", UUID)
"""An id whose kind depends on the operation stored beside it: the object of an idempotency key."""

PspAccountId = NewType("PspAccountId", UUID)
LogId = NewType("LogId", UUID)
EventId = NewType("EventId", UUID)
EndpointId = NewType("EndpointId", UUID)
RefundId = NewType("RefundId", UUID)
PayoutId = NewType("PayoutId", UUID)

MERCHANT = "mer"
PAYMENT = "pay"
PSP_ACCOUNT = "acct"
EVENT = "evt"
API_KEY = "key"
REFUND = "ref"
PAYOUT = "po"
ENDPOINT = "we"
OPERATION = "op"
FINDING = "fnd"
OPERATOR_REQUEST = "opr"
ADJUSTMENT = "adj"
"""An adjustment has the digits of the request for it."""

REQUEST = "req"
"""A request that creates something has the digits of what it creates."""

_HEX_DIGITS = 32
_DIGITS = re.compile("[0-9a-f]{32}")


def encode_id(prefix: str, value: UUID) -> str:
    """The public form of an identifier."""
    return f"{prefix}_{value.hex}"


def decode_id(prefix: str, text: str) -> UUID:
    """The UUID of a public identifier.

    Raises `InvalidId` if `encode_id` does not make such a prefix or such digits.
    """
    head, separator, digits = text.partition("_")
    if head != prefix or not separator or not _DIGITS.fullmatch(digits):
        raise InvalidId(f"expected an identifier like {prefix}_ and {_HEX_DIGITS} hexadecimal digits")
    return UUID(hex=digits)
