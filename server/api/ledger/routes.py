"""The routes of wallets, statements and receipts, with what the OpenAPI document says of them."""

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
        Parameter("format", {"type": "string", "enum": ["csv", "jsonl"]}, "`jsonl` unless said"),
        Parameter("from", TIME, "from then on"),
        Parameter("to", TIME, "before then"),
        Parameter("currency", {"type": "string", "minLength": 3, "maxLength": 3}, "only in this currency"),
    )
    at = (Parameter("at", TIME, "as they were then"),)
    return [
        get("/v1/wallets", ledger.wallets, LEDGER, "Balances", resources.Whole[Wallet], parameters=at),
        get(
            "/v1/statement",
            ledger.statement,
            LEDGER,
            "Every movement of a period, streamed",
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
            "What receipts are verified with, as a JWK set",
            {200: ("application/jwk-set+json",)},
            is_public=True,
        ),
    ]
