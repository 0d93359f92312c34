"""The routes of wallets, account statements and receipts, with their OpenAPI descriptions."""

from collections.abc import Sequence

from server import resources
from server.api.ledger.handlers import LedgerApi
from server.api.payments.routes import PAYMENT_PATH
from server.api.routing import TIME, Parameter, Route, get
from server.db.ledger.wallets import Wallet

LEDGER = "Ledger"


def ledger_routes(ledger: LedgerApi) -> Sequence[Route]:
    """Wallets, statements and receipts."""
    period = (
        Parameter("format", {"type": "string", "enum": ["csv", "jsonl"]}, "`jsonl` by default"),
        Parameter("from", TIME, "from this time on"),
        Parameter("to", TIME, "before then"),
        Parameter("currency", {"type": "string", "minLength": 3, "maxLength": 3}, "only this currency"),
    )
    at = (Parameter("at", TIME, "the balances at this time"),)
    return [
        get("/v1/wallets", ledger.wallets, LEDGER, "Balances", resources.Whole[Wallet], parameters=at),
        get(
            "/v1/statement",
            ledger.statement,
            LEDGER,
            "List every movement of a period, streamed",
            {200: ("application/x-ndjson", "text/csv")},
            parameters=period,
        ),
        get(
            f"{PAYMENT_PATH}/receipt",
            ledger.receipt,
            LEDGER,
            "A signed receipt, as a compact JWS",
            {200: ("application/jose",)},
            problems=[404, 409],
        ),
        get(
            "/v1/receipt-keys",
            ledger.receipt_keys,
            LEDGER,
            "The public keys of receipts, as a JWK set",
            {200: ("application/jwk-set+json",)},
            is_public=True,
            is_cross_origin=True,
        ),
    ]
