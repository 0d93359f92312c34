"""Ask a fraud check about a payment before any PSP is asked.

The contract: `POST` to the address of `FLORIN_FRAUD_URL`, with `FLORIN_FRAUD_TOKEN` as a bearer token, a JSON object with
`payment_id`, `merchant_id`, `amount` (minor units), `currency`, `order_id`, `description`, `capture`, `is_charge` (by token, else
a hosted page) and `metadata`. The answer is 200 and `{"verdict": "allow" | "deny" | "review"}` within 300 ms. `deny` ends the
payment before any PSP is asked. `review` lets it pass and flags it: with manual capture a person decides before any money is
taken. The check may be asked about the same payment again. Without an answer, a payment of up to the merchant's fallback limit
passes and is flagged `unchecked`; a larger page is opened later, and a larger token, which is never stored, is refused.
"""

from typing import Literal

import msgspec
import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from core.evidence import Risk
from core.ids import MERCHANT, PAYMENT, encode_id
from core.payment import Payment
from server.db.merchants.merchants import find_merchant
from server.db.pool import Pool
from server.http.client.client import Client
from server.http.client.errors import ClientError
from server.telemetry import Metrics

DEADLINE_SECONDS = 0.3
UNAVAILABLE = "fraud_check_unavailable"
_RISKS = {"allow": Risk.ALLOWED, "deny": Risk.DENIED, "review": Risk.REVIEW}
_log = structlog.get_logger()


class _Answer(msgspec.Struct, frozen=True):
    verdict: Literal["allow", "deny", "review"]


class FraudCheck:
    """A client of the fraud check."""

    def __init__(self, http: Client, pool: Pool, metrics: Metrics, *, url: str, token: str) -> None:
        self._http = http
        self._pool = pool
        self._metrics = metrics
        self._url = url
        self._headers = [("content-type", "application/json")]
        if token:
            self._headers.append(("authorization", f"Bearer {token}"))

    async def check(self, payment: Payment) -> Risk | None:
        """The verdict on a payment, or the fallback if there is no answer; None if the payment has to wait."""
        risk = await self._ask(payment)
        self._metrics.fraud_checked(risk.value if risk is not None else "no_answer")
        if risk is not None:
            return risk
        try:
            async with self._pool.connection() as connection:
                merchant = await find_merchant(connection, payment.merchant_id)
        except (DatabaseUnavailable, Overloaded):
            return None
        limit_minor = merchant.fallback_limit_minor(payment.money.currency) if merchant is not None else 0
        return Risk.UNCHECKED if payment.money.amount_minor <= limit_minor else None

    async def _ask(self, payment: Payment) -> Risk | None:
        with trio.move_on_after(DEADLINE_SECONDS):
            try:
                response = await self._http.request(
                    "POST", self._url, headers=self._headers, body=_question(payment), idempotent=True
                )
                if response.status == 200:
                    return _RISKS[msgspec.json.decode(response.body, type=_Answer).verdict]
                _log.warning("the fraud check did not answer", status=response.status)
            except (ClientError, msgspec.DecodeError) as error:
                _log.warning("the fraud check did not answer", error=str(error))
            return None
        _log.warning("the fraud check did not answer in time")
        return None


def _question(payment: Payment) -> bytes:
    return msgspec.json.encode(
        {
            "payment_id": encode_id(PAYMENT, payment.id),
            "merchant_id": encode_id(MERCHANT, payment.merchant_id),
            "amount": payment.money.amount_minor,
            "currency": payment.money.currency,
            "order_id": payment.order_id,
            "description": payment.description,
            "capture": payment.capture.value,
            "is_charge": payment.is_sync,
            "metadata": payment.metadata,
        }
    )
