"""The bodies of payment requests, validated as a whole before anything happens.

Bodies omit their defaults when they are encoded for a fingerprint, so a new optional field does not change the fingerprint of a
request that was sent before an upgrade.
"""

import re
from typing import Annotated, Literal

import msgspec

from core.errors import InvalidId, InvalidMoney, Unprocessable
from core.ids import PSP_ACCOUNT, PspAccountId, decode_id
from core.money import CURRENCY_EXPONENTS, Money, payable
from core.payment import Capture
from server.api.parsing import LongText, Text, decode_body, require_harmless
from server.flows.payments.choose import NewPayment
from server.http.client.errors import NotSent
from server.http.client.url import parse_origin, split

EXPIRES_IN_SECONDS_DEFAULT = 1_800
EXPIRES_IN_SECONDS_MAX = 604_800
METADATA_MAX = 50
Url = Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)]
Descriptor = Annotated[str, msgspec.Meta(min_length=1, max_length=22, pattern=r"^[ -~]*\Z")]
MetadataKey = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
MetadataValue = Annotated[str, msgspec.Meta(max_length=500)]


class CreatePayment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/payments`. `amount` is in minor units: 1999 EUR is 19.99 €.

    With `confirm` the PSP's `token` is charged at once; without it the customer pays on the page at `payment_url`. `psp_account`
    names the account that issued the token, if it is not the first one of the merchant's rules. The customer
    returns to `return_url` from the page or from the bank's check (3-D Secure).
    """

    amount: int
    currency: Annotated[str, msgspec.Meta(min_length=3, max_length=3)]
    order_id: Text
    description: LongText | None = None
    return_url: Url | None = None
    expires_in: Annotated[int, msgspec.Meta(ge=1, le=EXPIRES_IN_SECONDS_MAX)] | None = None
    confirm: bool = False
    token: Text | None = None
    psp_account: Text | None = None
    capture: Literal["automatic", "manual"] = "automatic"
    statement_descriptor: Descriptor | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], msgspec.Meta(max_length=METADATA_MAX)] = {}


class CapturePayment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/payments/{id}/capture`. Without `amount`, all that is authorized is captured; null is refused."""

    amount: int | msgspec.UnsetType = msgspec.UNSET


class CancelPayment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/payments/{id}/cancel`: an empty object, or nothing."""


class RefundPayment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/payments/{id}/refunds`. Without `amount`, all that is left is refunded; null is refused."""

    amount: int | msgspec.UnsetType = msgspec.UNSET
    reason: Text | None = None


_TEXTS = ("order_id", "description", "return_url", "token", "statement_descriptor")
_create = msgspec.json.Decoder(CreatePayment)
_capture = msgspec.json.Decoder(CapturePayment)
_cancel = msgspec.json.Decoder(CancelPayment)
_refund = msgspec.json.Decoder(RefundPayment)


def read_create(body: bytes) -> tuple[CreatePayment, NewPayment]:
    """Decode the request, and the payment it asks for. Raises `Malformed` or `Unprocessable`."""
    request = decode_body(_create, body, is_plain=True)
    if not request.currency.isupper():
        request = msgspec.structs.replace(request, currency=request.currency.upper())  # the same request, also to its key
    return request, new_payment(request)


def new_payment(request: CreatePayment) -> NewPayment:
    """The payment that a request asks for. Raises `Unprocessable`."""
    require_harmless([(name, getattr(request, name)) for name in _TEXTS])
    if request.metadata:
        require_harmless(("metadata", each) for name, text in request.metadata.items() for each in (name, text, f"{name} {text}"))
    if request.return_url is not None and not _is_web_address(request.return_url):
        raise Unprocessable("expected an http or https URL", code="invalid_field", path="$.return_url")
    _require_one_way(request)
    return NewPayment(
        money=_money(request.amount, request.currency),
        order_id=request.order_id,
        description=request.description,
        return_url=request.return_url,
        expires_in_seconds=request.expires_in or EXPIRES_IN_SECONDS_DEFAULT,
        token=request.token,
        token_issuer=_issuer(request.psp_account),
        capture=Capture(request.capture),
        statement_descriptor=request.statement_descriptor,
        metadata=request.metadata,
    )


def read_capture(body: bytes) -> CapturePayment:
    """Decode the request. Raises `Malformed` or `Unprocessable`."""
    return decode_body(_capture, body or b"{}")


def read_cancel(body: bytes) -> CancelPayment:
    """Decode the request. Raises `Malformed` or `Unprocessable`."""
    return decode_body(_cancel, body or b"{}")


def read_refund(body: bytes) -> RefundPayment:
    """Decode the request. Raises `Malformed` or `Unprocessable`."""
    request = decode_body(_refund, body or b"{}")
    require_harmless([("reason", request.reason)])
    if not isinstance(request.amount, msgspec.UnsetType) and request.amount <= 0:
        raise Unprocessable("a refund is at least 1 minor unit", code="invalid_amount", path="$.amount")
    return request


def _require_one_way(request: CreatePayment) -> None:
    """Require that a payment is either charged by token or paid on a page."""
    if request.confirm and request.token is None:
        raise Unprocessable("confirm needs the PSP's token for the card", code="invalid_field", path="$.token")
    if request.token is not None and not request.confirm:
        raise Unprocessable("a token is charged at once: add confirm: true", code="invalid_field", path="$.confirm")
    if request.psp_account is not None and request.token is None:
        raise Unprocessable("psp_account is the issuer of a token", code="invalid_field", path="$.token")
    if request.confirm and request.expires_in is not None:
        raise Unprocessable(
            "expires_in is for hosted pages; with confirm there is none", code="invalid_field", path="$.expires_in"
        )


def _issuer(text: str | None) -> PspAccountId | None:
    if text is None:
        return None
    try:
        return PspAccountId(decode_id(PSP_ACCOUNT, text))
    except InvalidId as error:
        raise Unprocessable("expected the id of a PSP account, acct_…", code="invalid_field", path="$.psp_account") from error


def _money(amount: int, currency: str) -> Money:
    code = currency.upper()
    try:
        return payable(amount, code)
    except InvalidMoney as error:
        path = "$.amount" if code in CURRENCY_EXPONENTS else "$.currency"
        raise Unprocessable(str(error), code="invalid_money", path=path) from error


_VISIBLE = re.compile(r"[!-\[\]-~]+")
"""ASCII without blanks and backslashes, which browsers read as slashes (WHATWG URL, 4.4)."""


def _is_web_address(text: str) -> bool:
    """Return whether every reader takes the same host from a URL, which is that of `server.http.client.url`."""
    try:
        return _VISIBLE.fullmatch(text) is not None and not parse_origin(split(text)[0]).host.endswith(".")
    except NotSent:
        return False
