"""`/v1/payments`: create a payment, read a payment."""

from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import trio

from core.card import contains_card_number
from core.errors import Conflict, InvalidId, InvalidMoney, Malformed, NotFound, Unprocessable
from core.events import payment_data
from core.evidence import Source
from core.idempotency import InFlight, Mismatch, Replay, fingerprint, parse_key
from core.ids import PAYMENT, PaymentId, decode_id
from core.money import CURRENCY_EXPONENTS, payable
from core.payment import Payment, Status
from server.api.problems import send_problem
from server.db.merchants import Merchant
from server.db.payments import find_payment
from server.flows.create import CREATED, NewPayment, Opened, create
from server.flows.services import Services
from server.flows.settle import encode_payment
from server.flows.verify import verify_if_possible
from server.http.asgi import Scope, Send, header, respond

JSON = b"application/json"
EXPIRES_IN_SECONDS_DEFAULT = 1_800
EXPIRES_IN_SECONDS_MAX = 604_800
ACCESS_CHECK_SECONDS = 2.0
"""How long a reader waits for the PSP's view of an open payment, and how often one payment is asked for."""
ACCESS_CHECKS_MAX = 10_000

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
LongText = Annotated[str, msgspec.Meta(max_length=1_000)]
Url = Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)]


class CreatePayment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/payments`. `amount` is in minor units: 1999 EUR is 19.99 €."""

    amount: int
    currency: Annotated[str, msgspec.Meta(min_length=3, max_length=3)]
    order_id: Text
    description: LongText | None = None
    return_url: Url | None = None
    expires_in: Annotated[int, msgspec.Meta(ge=1, le=EXPIRES_IN_SECONDS_MAX)] = EXPIRES_IN_SECONDS_DEFAULT


_decoder = msgspec.json.Decoder(CreatePayment)


class PaymentsApi:
    """The handlers, and when each open payment was last checked on access."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._checked_at: dict[PaymentId, float] = {}

    async def create(self, merchant: Merchant, scope: Scope, body: bytes, send: Send, *, request_id: str) -> None:
        """`POST /v1/payments`."""
        key = parse_key(header(scope, b"idempotency-key"))
        request = _decode(body)
        wanted = _validated(request, key)
        digest = fingerprint("POST", "/v1/payments", msgspec.json.encode(request))
        outcome = await create(self._services, merchant, wanted, key=key, fingerprint=digest)
        match outcome:
            case Replay(status, stored):
                await respond(send, status, stored, content_type=JSON, headers=[(b"idempotent-replayed", b"true")])
            case Mismatch():
                raise Unprocessable(
                    "this Idempotency-Key was used with another request: use a new key", code="idempotency_key_reused"
                )
            case InFlight():
                raise Conflict("the first request with this key is being carried out", code="idempotency_key_in_flight")
            case Opened(payment, replayed):
                await _send_opened(send, payment, replayed=replayed, request_id=request_id)

    async def read(self, merchant: Merchant, payment_text: str, send: Send) -> None:
        """`GET /v1/payments/{id}`. An open payment is checked at the PSP first, so a reader may be ahead of the webhook."""
        try:
            payment_id = PaymentId(decode_id(PAYMENT, payment_text))
        except InvalidId as error:
            raise NotFound("no such payment") from error
        async with self._services.db.pool.connection() as connection:
            payment = await find_payment(connection, merchant.id, payment_id)
        if payment is None:
            raise NotFound("no such payment")
        if self._is_worth_a_check(payment):
            payment = await verify_if_possible(self._services, payment, source=Source.ACCESS, seconds=ACCESS_CHECK_SECONDS)
        await respond(send, 200, encode_payment(payment), content_type=JSON)

    def _is_worth_a_check(self, payment: Payment) -> bool:
        if payment.status not in (Status.PENDING, Status.UNKNOWN) or payment.payment_url is None:
            return False
        now = trio.current_time()
        if now - self._checked_at.get(payment.id, float("-inf")) < ACCESS_CHECK_SECONDS:
            return False
        if len(self._checked_at) >= ACCESS_CHECKS_MAX:
            self._checked_at.clear()
        self._checked_at[payment.id] = now
        return True


def _decode(body: bytes) -> CreatePayment:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        if path:
            path = path.rstrip("`")
        elif "field `" in message:
            path = "$." + message.partition("field `")[2].rstrip("`")
        raise Unprocessable(message, code="invalid_field", path=path or "$") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is not JSON: {error}", code="malformed_json") from error


def _validated(request: CreatePayment, key: str) -> NewPayment:
    for name in ("order_id", "description", "return_url"):
        text: str | None = getattr(request, name)
        if text is not None and contains_card_number(text):
            raise Unprocessable(
                "this looks like a card number, which must never be sent here",
                code="card_number_refused",
                path=f"$.{name}",
            )
        if text is not None and "\x00" in text:
            raise Unprocessable("text must not contain the character U+0000", code="invalid_field", path=f"$.{name}")
    if contains_card_number(key):
        raise Unprocessable("the Idempotency-Key looks like a card number", code="card_number_refused")
    if request.return_url is not None and not _is_web_address(request.return_url):
        raise Unprocessable("expected an http or https address", code="invalid_field", path="$.return_url")
    try:
        money = payable(request.amount, request.currency)
    except InvalidMoney as error:
        path = "$.amount" if request.currency in CURRENCY_EXPONENTS else "$.currency"
        raise Unprocessable(str(error), code="invalid_money", path=path) from error
    return NewPayment(
        money=money,
        order_id=request.order_id,
        description=request.description,
        return_url=request.return_url,
        expires_in_seconds=request.expires_in,
    )


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and text.isascii() and text.isprintable()


async def _send_opened(send: Send, payment: Payment, *, replayed: bool, request_id: str) -> None:
    """The reply to a create: what happened at the PSP decides its status."""
    headers = [(b"idempotent-replayed", b"true")] if replayed else []
    match payment.status, payment.decline_code:
        case Status.UNKNOWN, _:
            code, status = "psp_timeout", 504
            detail = "the payment provider did not answer; the payment is UNKNOWN until it is found out: read it again later"
        case Status.CANCELED, "psp_unreachable":
            code, status = "psp_unreachable", 502
            detail = "the payment provider could not be reached and received nothing; the payment is canceled: use a new key"
        case Status.CANCELED, "psp_rejected":
            code, status = "psp_rejected", 502
            detail = "the payment provider refused to open this payment; it is canceled"
        case Status.PENDING, _ if payment.payment_url is None:
            code, status = "psp_unreachable", 502
            detail = "the payment provider cannot be reached yet: repeat the request with the same key"
        case _:
            location = (b"location", f"/v1/payments/{PAYMENT}_{payment.id.hex}".encode())
            await respond(send, CREATED, encode_payment(payment), content_type=JSON, headers=[location, *headers])
            return
    await send_problem(
        send, status, code=code, detail=detail, request_id=request_id, headers=headers, payment=payment_data(payment)
    )
