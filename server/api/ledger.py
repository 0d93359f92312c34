"""Wallets, statements and receipts: what merchants see of the ledger."""

import msgspec

from core.errors import Unprocessable
from core.money import CURRENCY_EXPONENTS
from core.payment import Payment
from server.api.bodies import read_query, read_time
from server.api.payments import JSON
from server.db.merchants import Merchant
from server.db.statement import Period
from server.db.wallets import list_wallets, wallets_at
from server.flows.receipt import issue, public_jwk
from server.flows.services import Services
from server.flows.statement import Format, statement
from server.http.asgi import Scope, Send, respond

_CONTENT_TYPES = {Format.CSV: b"text/csv; charset=utf-8", Format.JSONL: b"application/x-ndjson"}


class LedgerApi:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def wallets(self, merchant: Merchant, scope: Scope, send: Send) -> None:
        """`GET /v1/wallets`: balances now, or with `?at=` as they were."""
        at = read_time(read_query(scope, "at"), "at")
        async with self._services.db.pool.connection() as connection:
            wallets = await (wallets_at(connection, merchant.id, at) if at else list_wallets(connection, merchant.id))
        await respond(send, 200, msgspec.json.encode({"data": wallets}), content_type=JSON)

    async def statement(self, merchant: Merchant, scope: Scope, send: Send) -> None:
        """`GET /v1/statement`: every movement of a period, streamed. An answer that breaks off is not complete."""
        fields = read_query(scope, "format", "from", "to", "currency")
        form = fields.get("format", Format.JSONL.value)
        if form not in set(Format):
            raise Unprocessable(f"format is one of {', '.join(Format)}", code="invalid_query", path="format")
        currency = fields.get("currency")
        if currency is not None and currency not in CURRENCY_EXPONENTS:
            raise Unprocessable("this is not a currency", code="invalid_query", path="currency")
        period = Period(start=read_time(fields, "from"), end=read_time(fields, "to"), currency=currency)
        pieces = statement(self._services.db.pool, merchant.id, period, Format(form))
        first = await anext(pieces, b"")  # so that a failure still has a status of its own
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

    async def receipt(self, payment: Payment, send: Send) -> None:
        """`GET /v1/payments/{id}/receipt`: a signed receipt, as a compact JWS."""
        await respond(send, 200, (await issue(self._services, payment)).encode(), content_type=b"application/jose")

    async def receipt_keys(self, send: Send) -> None:
        """`GET /v1/receipt-keys`: what receipts are verified with, as a JWK set."""
        keys = {"keys": [public_jwk(self._services.receipt_key.public_key())]}
        await respond(send, 200, msgspec.json.encode(keys), content_type=b"application/jwk-set+json")
