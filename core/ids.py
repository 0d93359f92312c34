"""Identifiers: UUIDv7 values made by the caller, and the text form that merchants see.

A public identifier is a prefix that tells its kind and the UUID's 32 hexadecimal digits: `pay_0198c5...`.
"""

from typing import NewType
from uuid import UUID

from core.errors import InvalidId

MerchantId = NewType("MerchantId", UUID)
PaymentId = NewType("PaymentId", UUID)
OperationId = NewType("OperationId", UUID)
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

_HEX_DIGITS = 32


def encode_id(prefix: str, value: UUID) -> str:
    """The public form of an identifier."""
    return f"{prefix}_{value.hex}"


def decode_id(prefix: str, text: str) -> UUID:
    """The UUID of a public identifier.

    Raises `InvalidId` where the prefix or the digits are not what `encode_id` makes.
    """
    head, separator, digits = text.partition("_")
    if head != prefix or not separator or len(digits) != _HEX_DIGITS or not digits.isascii() or digits != digits.lower():
        raise InvalidId(f"expected an identifier like {prefix}_ and {_HEX_DIGITS} hexadecimal digits")
    try:
        return UUID(hex=digits)
    except ValueError as error:
        raise InvalidId(f"expected an identifier like {prefix}_ and {_HEX_DIGITS} hexadecimal digits") from error
