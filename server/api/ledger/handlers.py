"""`/v1/wallets`, `/v1/statement`, receipts: the merchants' view of the ledger."""

import msgspec

from core.errors import Unprocessable
from core.money import CURRENCY_EXPONENTS
from server.api.parsing import read_query, read_time
from server.api.payments.handlers import find_payment_of
from server.api.replies import JSON
from server.api.routing import Call
from server.db.ledger.account_statement import Period
from server.db.ledger.wallets import list_wallets, wallets_at
from server.flows.contexts import Receipts
from server.flows.ledger.account_statement import Format, statement
from server.flows.ledger.receipt import issue, public_jwk
from server.http.asgi import respond

_CONTENT_TYPES = {Format.CSV: b"text/csv; charset=utf-8", Format.JSONL: b"application/x-ndjson"}


class LedgerApi:
    """The handlers."""

    def __init__(self, context: Receipts) -> None:
        self._context = context

    async def wallets(self, call: Call) -> None:
        """`GET /v1/wallets`: balances now, or with `?at=` as they were."""
        at = read_time(read_query(call.scope, "at"), "at")
        async with self._context.pool.connection() as connection:
            merchant_id = call.merchant.id
            wallets = await (wallets_at(connection, merchant_id, at) if at else list_wallets(connection, merchant_id))
        await respond(call.send, 200, msgspec.json.encode({"data": wallets}), content_type=JSON)

    async def statement(self, call: Call) -> None:
        """`GET /v1/statement`: every movement of a period, streamed. An answer that breaks off is incomplete."""
        send = call.send
        fields = read_query(call.scope, "format", "from", "to", "currency")
        form = fields.get("format", Format.JSONL.value)
        if form not in set(Format):
            raise Unprocessable(f"format must be one of {', '.join(Format)}", code="invalid_query", path="format")
        currency = fields.get("currency")
        if currency is not None and currency not in CURRENCY_EXPONENTS:
            raise Unprocessable("this is not a currency", code="invalid_query", path="currency")
        period = Period(start=read_time(fields, "from"), end=read_time(fields, "to"), currency=currency)
        pieces = statement(self._context.pool, call.merchant.id, period, Format(form))
        first = await anext(pieces, b"")  # so that a failure can still choose its status
        name = f'attachment; filename="statement.{form}"'.encode()
        headers = [
            (b"content-type", _CONTENT_TYPES[Format(form)]),
            (b"content-disposition", name),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receipt(self, call: Call, payment_text: str) -> None:
        """`GET /v1/payments/{id}/receipt`: a signed receipt, as a compact JWS."""
        payment = await find_payment_of(self._context, call.merchant, payment_text)
        await respond(call.send, 200, (await issue(self._context, payment)).encode(), content_type=b"application/jose")

    async def receipt_keys(self, call: Call) -> None:
        """`GET /v1/receipt-keys`: the public keys of receipts, as a JWK set."""
        keys = {"keys": [public_jwk(self._context.receipt_key.public_key())]}
        await respond(call.send, 200, msgspec.json.encode(keys), content_type=b"application/jwk-set+json")
