"""The sandbox PSP's adapter. `server.sandbox` is the PSP itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from core.errors import InvalidSignature, Malformed, PspOutcomeUnknown, TokenUnknown, Unprocessable
from core.evidence import Evidence, EvidenceKind, Source
from core.ids import OperationId, PspAccountId
from core.money import Money
from core.payment import Payment, PendingOperation
from core.refund import Refund
from core.signing import verify_timestamped
from server.http.client.response import Response
from server.psp.adapter import Capabilities, Notice, Seen
from server.psp.guard import Guard
from server.psp.sandbox.objects import (
    UNKNOWN_TOKEN,
    Event,
    EventList,
    Intent,
    IntentList,
    Refusal,
    evidence_of,
    listed,
    notice_of,
    refund_evidence,
    seen,
)
from server.psp.transport import Answer, PspCall, PspTransport

SIGNATURE_HEADER = b"sandbox-signature"
NOT_FOUND, UNPROCESSABLE = 404, 422
CAPABILITIES = Capabilities(arrival_seconds=30.0, key_lifetime=timedelta(hours=23))
PAGE = 100
PAGES_MAX = 1_000
_NUL = b"\\u0000"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxAdapter:
    """One account at the sandbox PSP."""

    transport: PspTransport
    account_id: PspAccountId
    webhook_secrets: tuple[str, ...]
    token_scope: PspAccountId
    mode: str = "test"
    is_enabled: bool = True
    psp: str = "sandbox"
    capabilities: Capabilities = CAPABILITIES

    @property
    def guard(self) -> Guard:
        """See `Adapter`."""
        return self.transport.guard

    @property
    def two_steps(self) -> None:
        """See `Adapter`."""
        return None

    def takes(self, money: Money) -> bool:
        """See `Adapter`."""
        return money.amount_minor > 0

    async def create_intent(self, payment: Payment) -> Evidence:
        """See `Adapter`."""
        answer = await self._ask(PspCall.INTENT, "POST", "/v1/intents", _wanted(payment), key=payment.operation_id)
        return self._evidence(answer, Source.CREATE)

    async def charge(self, payment: Payment, token: str) -> Evidence:
        """See `Adapter`."""
        body = {**_wanted(payment), "token": token}
        answer = await self._ask(PspCall.CHARGE, "POST", "/v1/intents", body, key=payment.operation_id)
        if answer.response.status == UNPROCESSABLE and not answer.after_loss and _says_unknown_token(answer.response):
            raise TokenUnknown("the sandbox PSP does not know this token")
        return self._evidence(answer, Source.CREATE)

    async def capture(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """See `Adapter`."""
        body = {"amount_minor": operation.amount_minor}
        answer = await self._ask(PspCall.CAPTURE, "POST", f"{_path(payment)}/capture", body, key=operation.id)
        return self._evidence(answer, Source.MERCHANT)

    async def void(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """See `Adapter`."""
        answer = await self._ask(PspCall.VOID, "POST", f"{_path(payment)}/void", {}, key=operation.id)
        return self._evidence(answer, Source.MERCHANT)

    async def refund(self, payment: Payment, refund: Refund) -> Evidence:
        """See `Adapter`."""
        body = {"refund_id": refund.id, "amount_minor": refund.money.amount_minor}
        answer = await self._ask(PspCall.REFUND, "POST", f"{_path(payment)}/refunds", body, key=OperationId(refund.id))
        intent = _read(answer.accepted(), Intent)
        return refund_evidence(intent, str(refund.id), self.account_id, source=Source.MERCHANT)

    async def fetch_refund(self, payment: Payment, refund: Refund, *, source: Source) -> Evidence:
        """See `Adapter`."""
        intent = await self._find(payment)
        name = refund.reference or str(refund.id)
        if intent is not None and name in intent.refunds:
            return refund_evidence(intent, name, self.account_id, source=source)
        return Evidence(
            kind=EvidenceKind.REFUND_NOT_FOUND,
            source=source,
            psp_account_id=self.account_id,
            operation_id=payment.operation_id,
            refund_id=refund.id,
        )

    async def fetch(self, payment: Payment, *, source: Source) -> Evidence:
        """See `Adapter`."""
        intent = await self._find(payment)
        return evidence_of(intent, self.account_id, source=source) if intent else self._not_found(payment, source)

    async def close(self, payment: Payment, *, as_kind: EvidenceKind, source: Source) -> Evidence:
        """See `Adapter`."""
        assert as_kind in (EvidenceKind.EXPIRED, EvidenceKind.CANCELED)
        reference = payment.reference
        if reference is None:
            intent = await self._find(payment)
            if intent is None:
                return self._not_found(payment, source)
            reference = intent.id
        answer = await self._ask(PspCall.CLOSE, "POST", f"/v1/intents/{quote(reference)}/close", {"as": as_kind.value})
        if answer.response.status == NOT_FOUND:
            return self._not_found(payment, source)
        return self._evidence(answer, source)

    async def list_window(self, *, since: datetime, until: datetime) -> Sequence[Seen]:
        """See `Adapter`."""
        found: list[Seen] = []
        after = ""
        for _ in range(PAGES_MAX):
            window = f"created_from={int(since.timestamp())}&created_before={int(until.timestamp()) + 1}"
            answer = await self._ask(PspCall.LIST, "GET", f"/v1/intents?{window}&limit={PAGE}&after={quote(after)}")
            intents = _read(answer.accepted(), IntentList).data
            found += [seen(intent, self.account_id) for intent in intents]
            if len(intents) < PAGE:
                return found
            after = intents[-1].id
        raise PspOutcomeUnknown("the PSP's list does not end")

    async def list_events(self, *, since: datetime, until: datetime, only_rare: bool) -> Sequence[Notice]:
        """See `Adapter`."""
        found: list[Notice] = []
        after = ""
        for _ in range(PAGES_MAX):
            types = "rare" if only_rare else "all"
            window = f"created_from={int(since.timestamp())}&created_before={int(until.timestamp()) + 1}"
            path = f"/v1/events?{window}&types={types}&limit={PAGE}&after={quote(after)}"
            page = _read((await self._ask(PspCall.LIST, "GET", path)).accepted(), EventList)
            found += [listed(event, self.account_id) for event in page.data]
            if not page.has_more or not page.data:
                return found
            after = page.data[-1].id
        raise PspOutcomeUnknown("the PSP's list of events does not end")

    async def resolve(self, notice: Notice) -> Notice:
        """See `Adapter`; the sandbox's events all name their payment."""
        return notice

    def read_webhook(self, headers: Mapping[bytes, bytes], body: bytes, *, now: float) -> Notice:
        """See `Adapter`."""
        signature = headers.get(SIGNATURE_HEADER)
        if signature is None:
            raise InvalidSignature("the Sandbox-Signature header is missing")
        verify_timestamped(self.webhook_secrets, header=signature.decode("latin-1"), body=body, now=now)
        if _NUL in body:
            raise Malformed("an event of the sandbox PSP holds the character U+0000")
        try:
            return notice_of(msgspec.json.decode(body, type=Event), self.account_id)
        except msgspec.DecodeError as error:
            raise Malformed(f"not an event of the sandbox PSP: {error}") from error
        except PspOutcomeUnknown as error:
            raise Malformed(f"an impossible event of the sandbox PSP: {error}") from error

    def _evidence(self, answer: Answer, source: Source) -> Evidence:
        return evidence_of(_read(answer.accepted(), Intent), self.account_id, source=source)

    def _not_found(self, payment: Payment, source: Source) -> Evidence:
        return Evidence(
            kind=EvidenceKind.NOT_FOUND, source=source, psp_account_id=self.account_id, operation_id=payment.operation_id
        )

    async def _find(self, payment: Payment) -> Intent | None:
        if payment.reference is not None:
            answer = await self._ask(PspCall.FETCH, "GET", _path(payment))
            return None if answer.response.status == NOT_FOUND else _read(answer.accepted(), Intent)
        answer = await self._ask(PspCall.FETCH, "GET", f"/v1/intents?operation_id={payment.operation_id}")
        found = _read(answer.accepted(), IntentList).data
        return found[0] if found else None

    async def _ask(
        self, call: PspCall, method: str, path: str, body: dict[str, Any] | None = None, *, key: OperationId | None = None
    ) -> Answer:
        content = msgspec.json.encode(body) if body is not None else b""
        headers = [("idempotency-key", str(key))] if key is not None else []
        is_keyed = key is not None or call is PspCall.CLOSE  # closing twice is the same as closing once
        return await self.transport.call(call, method, path, body=content, headers=headers, is_keyed=is_keyed)


def _says_unknown_token(response: Response) -> bool:
    return _read(response, Refusal).code == UNKNOWN_TOKEN


def _path(payment: Payment) -> str:
    assert payment.reference is not None
    return f"/v1/intents/{quote(payment.reference)}"


def _wanted(payment: Payment) -> dict[str, Any]:
    return {
        "amount_minor": payment.money.amount_minor,
        "currency": payment.money.currency,
        "return_url": payment.return_url,
        "description": payment.description,
        "order_id": payment.order_id,
        "statement_descriptor": payment.statement_descriptor,
        "capture": payment.capture,
        "merchant_id": payment.merchant_id,
        "payment_id": payment.id,
        "operation_id": payment.operation_id,
    }


def _read(response: Response, kind: type[T]) -> T:
    if _NUL in response.body:
        raise PspOutcomeUnknown("the answer of the sandbox PSP contains a character that cannot be stored")
    try:
        return msgspec.json.decode(response.body, type=kind)
    except msgspec.DecodeError as error:
        raise PspOutcomeUnknown(f"the answer of the sandbox PSP cannot be read: {error}") from error


def headers(api_key: str) -> list[tuple[str, str]]:
    """The header fields of every call."""
    return [("authorization", f"Bearer {api_key}"), ("content-type", "application/json")]


def make_adapter(
    transport: PspTransport,
    *,
    account_id: PspAccountId,
    webhook_secrets: tuple[str, ...],
    mode: str,
    is_enabled: bool,
    token_scope: PspAccountId,
    now: Callable[[], datetime],
) -> SandboxAdapter:
    """See `server.psp.providers.MakeAdapter`."""
    del now
    return SandboxAdapter(
        transport=transport,
        account_id=account_id,
        webhook_secrets=webhook_secrets,
        token_scope=token_scope,
        mode=mode,
        is_enabled=is_enabled,
    )


def require_api_key(api_key: str, mode: str) -> None:
    """Raise `Unprocessable` for a live account, because the sandbox takes no real money, or a key of another form."""
    if mode != "test":
        raise Unprocessable("the sandbox has test accounts only")
    if not api_key.startswith("sandbox_"):
        raise Unprocessable("the sandbox's API keys begin with sandbox_")


def require_webhook_secret(secret: str) -> None:
    """Raise `Unprocessable` for a secret of another form."""
    if not secret.startswith("sandbox_whsec_"):
        raise Unprocessable("the sandbox's webhook signing secrets begin with sandbox_whsec_")
