"""Payments: create, read, capture, cancel, refund."""

from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Literal

from florin_client._async.pages import pages, whole
from florin_client._async.transport import AsyncTransport
from florin_client._requests import REQUEST_SECONDS, Request, checked_key, prefer, segment, without_none
from florin_client.resources import Log, Payment, PaymentStatus, Refund


class AsyncPayments:
    """`/v1/payments`. Amounts are in minor units: 1999 EUR is 19.99 €."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        *,
        amount: int,
        currency: str,
        order_id: str,
        token: str | None = None,
        psp_account: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
        capture: Literal["automatic", "manual"] | None = None,
        statement_descriptor: str | None = None,
        return_url: str | None = None,
        expires_in: int | None = None,
        wait_seconds: int | None = None,
        idempotency_key: str | None = None,
    ) -> Payment:
        """Create a payment and return it.

        With a `token` of the PSP the customer is charged at once; `psp_account` names the account that issued it, if you use
        several. Without a token, send the customer to the `payment_url` of the returned payment; it is None if the PSP is busy,
        and the page is then opened later. `expires_in` is the lifetime of that page in seconds. `wait_seconds=0` returns right
        after the commit, before the PSP was asked. Raises `ApiError` with code `declined` for a declined charge, and with code
        `psp_timeout` while its outcome is UNKNOWN; `error.payment` is the payment in both cases.
        """
        body = without_none(
            amount=amount,
            currency=currency,
            order_id=order_id,
            confirm=True if token is not None else None,
            token=token,
            psp_account=psp_account,
            description=description,
            metadata=dict(metadata) if metadata is not None else None,
            capture=capture,
            statement_descriptor=statement_descriptor,
            return_url=return_url,
            expires_in=expires_in,
        )
        return await self._transport.call(
            Request(
                "POST",
                "/v1/payments",
                Payment,
                body,
                checked_key(idempotency_key),
                prefer(wait_seconds),
                timeout_seconds=REQUEST_SECONDS + (wait_seconds or 0),
            )
        )

    def list(
        self,
        *,
        status: PaymentStatus | None = None,
        order_id: str | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
    ) -> AsyncGenerator[Payment, None]:
        """Yield payments, newest first. The times need a time zone."""
        return pages(
            self._transport,
            "/v1/payments",
            Payment,
            status=status,
            order_id=order_id,
            created_from=created_from.isoformat() if created_from is not None else None,
            created_before=created_before.isoformat() if created_before is not None else None,
        )

    async def get(self, payment_id: str, *, wait_seconds: int | None = None) -> Payment:
        """Return a payment; with `wait_seconds` (at most 60) once its outcome is known, or when that time has passed."""
        return await self._transport.call(
            Request(
                "GET",
                _path(payment_id),
                Payment,
                prefer=prefer(wait_seconds),
                timeout_seconds=REQUEST_SECONDS + (wait_seconds or 0),
            )
        )

    async def capture(self, payment_id: str, *, amount: int | None = None, idempotency_key: str | None = None) -> Payment:
        """Take all of an authorized payment, or `amount` of it. The rest is released."""
        return await self._post(f"{_path(payment_id)}/capture", without_none(amount=amount), idempotency_key)

    async def cancel(self, payment_id: str, *, idempotency_key: str | None = None) -> Payment:
        """Close the payment page, or void the authorization."""
        return await self._post(f"{_path(payment_id)}/cancel", {}, idempotency_key)

    async def verify(self, payment_id: str) -> Payment:
        """Ask the PSP now how the payment stands."""
        return await self._transport.call(Request("POST", f"{_path(payment_id)}/verify", Payment))

    async def refund(
        self, payment_id: str, *, amount: int | None = None, reason: str | None = None, idempotency_key: str | None = None
    ) -> Refund:
        """Give back all that is left of a payment, or `amount` of it."""
        body = without_none(amount=amount, reason=reason)
        return await self._transport.call(
            Request("POST", f"{_path(payment_id)}/refunds", Refund, body, checked_key(idempotency_key))
        )

    async def refunds(self, payment_id: str) -> tuple[Refund, ...]:
        """Return the refunds of a payment, oldest first."""
        return await whole(self._transport, f"{_path(payment_id)}/refunds", Refund)

    async def get_refund(self, payment_id: str, refund_id: str) -> Refund:
        """Return one refund of a payment."""
        return await self._transport.call(Request("GET", f"{_path(payment_id)}/refunds/{segment(refund_id)}", Refund))

    async def logs(self, payment_id: str) -> tuple[Log, ...]:
        """Return every change of a payment, oldest first."""
        return await whole(self._transport, f"{_path(payment_id)}/logs", Log)

    async def receipt(self, payment_id: str) -> str:
        """Return the signed receipt of a payment, a compact JWS. See `ledger.receipt_keys`."""
        return await self._transport.call(Request("GET", f"{_path(payment_id)}/receipt", str))

    async def _post(self, path: str, body: dict[str, object], idempotency_key: str | None) -> Payment:
        return await self._transport.call(Request("POST", path, Payment, body, checked_key(idempotency_key)))


def _path(payment_id: str) -> str:
    return f"/v1/payments/{segment(payment_id)}"
