"""The sandbox PSP's adapter; `server.sandbox` is the other side."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import quote
from uuid import UUID

import msgspec

from core.errors import InvalidMoney, InvalidSignature, Malformed, PspOutcomeUnknown, PspRejected, PspUnreachable
from core.evidence import Evidence, EvidenceKind, Source
from core.ids import MerchantId, OperationId, PaymentId, PspAccountId, RefundId
from core.money import Money
from core.payment import Payment, PendingOperation
from core.refund import Refund
from core.signing import verify_timestamped
from server.http.client import Client
from server.http.errors import BadResponse, NotSent, OutcomeUnknown
from server.http.response import Response
from server.psp.adapter import Notice

SIGNATURE_HEADER = b"sandbox-signature"

NOT_FOUND = 404
_NUL = b"\\u0000"
_ABOUT_ANOTHER = frozenset({408, 409, 425, 429})

T = TypeVar("T")

_KIND_BY_STATUS = {
    "open": EvidenceKind.OPENED,
    "authorized": EvidenceKind.AUTHORIZED,
    "captured": EvidenceKind.CAPTURED,
    "declined": EvidenceKind.DECLINED,
    "expired": EvidenceKind.EXPIRED,
    "canceled": EvidenceKind.CANCELED,
}


_REFUND_KINDS = {
    "succeeded": EvidenceKind.REFUND_SUCCEEDED,
    "pending": EvidenceKind.REFUND_PENDING,
    "failed": EvidenceKind.REFUND_FAILED,
}
_DISPUTE_KINDS = {
    "dispute.opened": EvidenceKind.DISPUTED,
    "dispute.won": EvidenceKind.DISPUTE_WON,
    "dispute.lost": EvidenceKind.DISPUTE_LOST,
}

_REFUSALS = frozenset({EvidenceKind.ATTEMPT_FAILED, EvidenceKind.DECLINED})


class Intent(msgspec.Struct, frozen=True):
    """A payment intent as the sandbox writes it."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    status: str
    amount_minor: int
    currency: str
    payment_url: str
    merchant_id: UUID
    payment_id: UUID
    operation_id: UUID
    last_decline_code: str | None = None
    captured_minor: int = 0
    capture_before: int | None = None
    refunds: dict[UUID, "_Refund"] = {}
    dispute: "_Dispute | None" = None


class _Refund(msgspec.Struct, frozen=True):
    amount_minor: int
    status: str


class _Dispute(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    amount_minor: int


class _IntentList(msgspec.Struct, frozen=True):
    data: list[Intent]


class _Event(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    type: Annotated[str, msgspec.Meta(max_length=255)]
    data: Intent


class SandboxAdapter:
    """One account at the sandbox PSP."""

    psp = "sandbox"

    def __init__(
        self, http: Client, *, account_id: PspAccountId, base_url: str, api_key: str, webhook_secrets: tuple[str, ...]
    ) -> None:
        self.account_id = account_id
        self._http = http
        self._base_url = base_url
        self._headers = [("authorization", f"Bearer {api_key}"), ("content-type", "application/json")]
        self._webhook_secrets = webhook_secrets

    async def create_intent(self, payment: Payment) -> Evidence:
        """See `Adapter`."""
        response = await self._call("POST", "/v1/intents", _wanted(payment), idempotency_key=payment.operation_id)
        return self._evidence(_read(response, Intent), source=Source.CREATE)

    async def charge(self, payment: Payment, token: str) -> Evidence:
        """See `Adapter`."""
        body = {**_wanted(payment), "token": token}
        response = await self._call("POST", "/v1/intents", body, idempotency_key=payment.operation_id)
        return self._evidence(_read(response, Intent), source=Source.CREATE)

    async def capture(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """See `Adapter`."""
        assert payment.reference is not None
        path = f"/v1/intents/{quote(payment.reference)}/capture"
        response = await self._call("POST", path, {"amount_minor": operation.amount_minor}, idempotency_key=operation.id)
        return self._evidence(_read(response, Intent), source=Source.MERCHANT)

    async def void(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """See `Adapter`."""
        assert payment.reference is not None
        response = await self._call("POST", f"/v1/intents/{quote(payment.reference)}/void", {}, idempotency_key=operation.id)
        return self._evidence(_read(response, Intent), source=Source.MERCHANT)

    async def refund(self, payment: Payment, refund: Refund) -> Evidence:
        """See `Adapter`."""
        assert payment.reference is not None
        path = f"/v1/intents/{quote(payment.reference)}/refunds"
        body = {"refund_id": refund.id, "amount_minor": refund.money.amount_minor}
        response = await self._call("POST", path, body, idempotency_key=OperationId(refund.id))
        return self._evidence_of_refund(_read(response, Intent), refund.id, source=Source.MERCHANT)

    async def fetch_refund(self, payment: Payment, refund: Refund, *, source: Source) -> Evidence:
        """See `Adapter`."""
        intent = await self._find(payment)
        if intent is not None and refund.id in intent.refunds:
            return self._evidence_of_refund(intent, refund.id, source=source)
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
        return self._evidence(intent, source=source) if intent else self._not_found(payment, source)

    async def close(self, payment: Payment, *, as_kind: EvidenceKind, source: Source) -> Evidence:
        """See `Adapter`."""
        assert as_kind in (EvidenceKind.EXPIRED, EvidenceKind.CANCELED)
        reference = payment.reference
        if reference is None:
            intent = await self._find(payment)
            if intent is None:
                return self._not_found(payment, source)
            reference = intent.id
        response = await self._call("POST", f"/v1/intents/{quote(reference)}/close", {"as": as_kind.value})
        if response.status == NOT_FOUND:
            return self._not_found(payment, source)
        return self._evidence(_read(response, Intent), source=source)

    def read_webhook(self, headers: Mapping[bytes, bytes], body: bytes, *, now: float) -> Notice:
        """See `Adapter`."""
        signature = headers.get(SIGNATURE_HEADER)
        if signature is None:
            raise InvalidSignature("the Sandbox-Signature header is missing")
        verify_timestamped(self._webhook_secrets, header=signature.decode("latin-1"), body=body, now=now)
        if _NUL in body:
            raise Malformed("an event of the sandbox PSP holds the character U+0000")
        try:
            event = msgspec.json.decode(body, type=_Event)
        except msgspec.DecodeError as error:
            raise Malformed(f"not an event of the sandbox PSP: {error}") from error
        intent = event.data
        try:
            evidence = self._evidence_of_event(event)
        except PspOutcomeUnknown as error:
            raise Malformed(f"an event of the sandbox PSP that cannot be: {error}") from error
        return Notice(
            event_id=event.id,
            event_type=event.type,
            merchant_id=MerchantId(intent.merchant_id),
            payment_id=PaymentId(intent.payment_id),
            evidence=evidence,
        )

    def _evidence_of_event(self, event: _Event) -> tuple[Evidence, ...]:
        intent = event.data
        match event.type:
            case "intent.attempt_failed":
                return (self._evidence(intent, source=Source.WEBHOOK, kind=EvidenceKind.ATTEMPT_FAILED),)
            case "intent.captured" | "intent.expired" | "intent.canceled" | "intent.declined" | "intent.authorized":
                return (self._evidence(intent, source=Source.WEBHOOK),)
            case "refund.updated":
                refunds = map(RefundId, intent.refunds)
                return tuple(self._evidence_of_refund(intent, one, source=Source.WEBHOOK) for one in refunds)
            case "dispute.opened" | "dispute.won" | "dispute.lost" if intent.dispute is not None:
                return (self._evidence_of_dispute(intent, intent.dispute, _DISPUTE_KINDS[event.type]),)
            case _:
                return ()

    def _evidence_of_refund(self, intent: Intent, refund_id: RefundId, *, source: Source) -> Evidence:
        refund = intent.refunds.get(refund_id)
        kind = _REFUND_KINDS.get(refund.status) if refund else None
        if refund is None or kind is None:
            raise PspOutcomeUnknown("the sandbox PSP answered without a refund that we can read")
        return Evidence(
            kind=kind,
            source=source,
            psp_account_id=self.account_id,
            operation_id=OperationId(intent.operation_id),
            reference=str(refund_id),
            money=_money(refund.amount_minor, intent.currency),
            code="failed_at_the_psp" if kind is EvidenceKind.REFUND_FAILED else None,
            refund_id=refund_id,
        )

    def _evidence_of_dispute(self, intent: Intent, dispute: _Dispute, kind: EvidenceKind) -> Evidence:
        return Evidence(
            kind=kind,
            source=Source.WEBHOOK,
            psp_account_id=self.account_id,
            operation_id=OperationId(intent.operation_id),
            reference=dispute.id,
            money=_money(dispute.amount_minor, intent.currency),
        )

    def _evidence(self, intent: Intent, *, source: Source, kind: EvidenceKind | None = None) -> Evidence:
        kind = kind or _KIND_BY_STATUS.get(intent.status)
        if kind is None:
            raise PspOutcomeUnknown(f"the sandbox PSP knows a status that we do not: {intent.status!r}")
        held_minor = {EvidenceKind.AUTHORIZED: intent.amount_minor, EvidenceKind.CAPTURED: intent.captured_minor}.get(kind)
        return Evidence(
            kind=kind,
            source=source,
            psp_account_id=self.account_id,
            operation_id=OperationId(intent.operation_id),
            reference=intent.id,
            payment_url=intent.payment_url if source is not Source.WEBHOOK else None,
            money=_money(held_minor, intent.currency) if held_minor is not None else None,
            code=intent.last_decline_code if kind in _REFUSALS else None,
            capture_before=_moment(intent.capture_before) if kind is EvidenceKind.AUTHORIZED else None,
        )

    def _not_found(self, payment: Payment, source: Source) -> Evidence:
        return Evidence(
            kind=EvidenceKind.NOT_FOUND,
            source=source,
            psp_account_id=self.account_id,
            operation_id=payment.operation_id,
        )

    async def _find(self, payment: Payment) -> Intent | None:
        if payment.reference is not None:
            response = await self._call("GET", f"/v1/intents/{quote(payment.reference)}")
            return None if response.status == NOT_FOUND else _read(response, Intent)
        response = await self._call("GET", f"/v1/intents?operation_id={payment.operation_id}")
        found = _read(response, _IntentList).data
        return found[0] if found else None

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, idempotency_key: OperationId | None = None
    ) -> Response:
        headers = self._headers
        if idempotency_key is not None:
            headers = [*headers, ("idempotency-key", str(idempotency_key))]
        content = msgspec.json.encode(body) if body is not None else b""
        is_safe = method == "GET" or idempotency_key is not None
        try:
            return await self._http.request(method, self._base_url + path, headers=headers, body=content, idempotent=is_safe)
        except NotSent as error:
            raise PspUnreachable(f"the sandbox PSP cannot be reached: {error}") from error
        except (OutcomeUnknown, BadResponse) as error:
            raise PspOutcomeUnknown(f"the answer of the sandbox PSP was lost: {error}") from error


def _wanted(payment: Payment) -> dict[str, Any]:
    return {
        "amount_minor": payment.money.amount_minor,
        "currency": payment.money.currency,
        "return_url": payment.return_url,
        "description": payment.description,
        "statement_descriptor": payment.statement_descriptor,
        "capture": payment.capture,
        "merchant_id": payment.merchant_id,
        "payment_id": payment.id,
        "operation_id": payment.operation_id,
    }


def _money(amount_minor: int, currency: str) -> Money:
    try:
        return Money(amount_minor, currency)
    except InvalidMoney as error:
        raise PspOutcomeUnknown(f"the sandbox PSP named impossible money: {error}") from error


def _moment(seconds: int | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
    except (OverflowError, ValueError, OSError) as error:
        raise PspOutcomeUnknown(f"the sandbox PSP named an impossible time: {error}") from error


def _read(response: Response, kind: type[T]) -> T:
    """The body of a successful answer. A 5xx may have had its effect; a 4xx had none, unless it speaks of another request."""
    if response.status >= 500 or response.status in _ABOUT_ANOTHER:
        raise PspOutcomeUnknown(f"the sandbox PSP answered {response.status}")
    if response.status >= 400:
        raise PspRejected(f"the sandbox PSP refused: {response.status}")  # what it says may repeat what must not be logged
    if _NUL in response.body:
        raise PspOutcomeUnknown("the answer of the sandbox PSP holds a character that no text of ours can hold")
    try:
        return msgspec.json.decode(response.body, type=kind)
    except msgspec.DecodeError as error:
        raise PspOutcomeUnknown(f"the answer of the sandbox PSP cannot be read: {error}") from error
