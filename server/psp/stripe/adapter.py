"""Stripe's adapter: PaymentIntents for tokens, Checkout Sessions for pages, over Stripe's public REST API.

A token is charged in two steps: the PaymentIntent is created and its id committed before it is confirmed, so that a lost answer
can be fetched by id. The idempotency key is the operation's id, with the step if an operation has two. Stripe says whether a
request may be repeated (`Stripe-Should-Retry`), and forgets keys after 24 hours. Capture and cancel are sent without a key: an
intent is captured or canceled once anyway, and a key would repeat a 500 for a day.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote

from msgspec.structs import replace

from core.errors import Malformed, PspOutcomeUnknown, PspRejected, TokenUnknown
from core.evidence import Evidence, EvidenceKind, Source
from core.ids import OperationId, PaymentId, PspAccountId
from core.money import Money
from core.payment import Capture, Payment, PendingOperation
from core.refund import Refund, made_at_the_psp
from server.http.client.response import Response
from server.psp.adapter import Capabilities, Notice, Seen
from server.psp.guard import Guard
from server.psp.stripe import events
from server.psp.stripe.api import StripeApi, decode, read
from server.psp.stripe.form import Field
from server.psp.stripe.objects import (
    ErrorBody,
    PaymentIntent,
    Session,
    decline_code,
    descriptor_suffix,
    ids_of,
    intent_evidence,
    is_about_token,
    metadata_of,
    moment,
    refund_evidence,
    session_evidence,
    to_stripe,
)
from server.psp.stripe.objects import Refund as StripeRefund
from server.psp.transport import PspCall

CAPABILITIES = Capabilities(key_lifetime=timedelta(hours=23), page_needs_return_url=True, page_seconds_max=79_200)
SESSION_LONGER = timedelta(hours=1)
SESSION_MAX = timedelta(hours=23, minutes=59)
WINDOW_OF_TOKENS = timedelta(minutes=3)
"""The PaymentIntent of a payment by token is created within this time of the payment's acceptance."""

_EXPAND_CHARGE: Mapping[str, Field] = {"expand": ["latest_charge"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeAdapter:
    """One account at Stripe."""

    api: StripeApi
    account_id: PspAccountId
    webhook_secrets: tuple[str, ...]
    token_scope: PspAccountId
    mode: str
    is_enabled: bool = True
    psp: str = "stripe"
    capabilities: Capabilities = CAPABILITIES

    @property
    def guard(self) -> Guard:
        """See `Adapter`."""
        return self.api.transport.guard

    @property
    def two_steps(self) -> "StripeAdapter":
        """See `Adapter`."""
        return self

    def takes(self, money: Money) -> bool:
        """See `Adapter`."""
        return to_stripe(money) is not None

    async def create_intent(self, payment: Payment) -> Evidence:
        """See `Adapter`. The page is a Checkout Session for cards, so that it ends with its payment.

        It is open an hour longer than the payment, because Stripe opens none for less than half an hour and a repetition has to
        be the same request. Florin closes it in time.
        """
        expires_at = min(payment.expires_at + SESSION_LONGER, payment.created_at + SESSION_MAX)
        metadata = metadata_of(payment)
        item: dict[str, Field] = {
            "quantity": 1,
            "price_data": {
                "currency": payment.money.currency.lower(),
                "unit_amount": _amount(payment.money),
                "product_data": {"name": payment.description or f"Order {payment.order_id}"},
            },
        }
        wanted: dict[str, Field] = {
            "mode": "payment",
            "payment_method_types": ["card"],
            "line_items": [item],
            "success_url": payment.return_url,
            "cancel_url": payment.return_url,
            "client_reference_id": str(payment.id),
            "expires_at": int(expires_at.timestamp()),
            "metadata": metadata,
            "payment_intent_data": {
                "metadata": metadata,
                "capture_method": "manual" if payment.capture is Capture.MANUAL else None,
                "description": payment.description,
                "statement_descriptor_suffix": descriptor_suffix(payment.statement_descriptor),
            },
        }
        answer = await self.api.post(PspCall.INTENT, "/v1/checkout/sessions", wanted, key=str(payment.operation_id))
        return self._of_session(read(answer, Session), Source.CREATE)

    async def prepare(self, payment: Payment, token: str) -> Evidence:
        """See `TwoSteps`. `token` is a PaymentMethod (`pm_...`) or one of the older tokens (`tok_...`)."""
        is_old = token.startswith("tok_")
        wanted: dict[str, Field] = {
            "amount": _amount(payment.money),
            "currency": payment.money.currency.lower(),
            "payment_method": None if is_old else token,
            "payment_method_data": {"type": "card", "card": {"token": token}} if is_old else None,
            "payment_method_types": ["card"],
            "capture_method": "manual" if payment.capture is Capture.MANUAL else "automatic",
            "description": payment.description,
            "statement_descriptor_suffix": descriptor_suffix(payment.statement_descriptor),
            "metadata": metadata_of(payment),
        }
        answer = await self.api.post(PspCall.INTENT, "/v1/payment_intents", wanted, key=f"{payment.operation_id}-create")
        if not answer.after_loss and _is_about_token(answer.response):
            raise TokenUnknown("Stripe does not know this token")
        return self._of_intent(read(answer, PaymentIntent), payment, Source.CREATE)

    async def charge(self, payment: Payment, token: str) -> Evidence:
        """See `Adapter`. Confirms the PaymentIntent that `prepare` has created with the token."""
        del token
        assert payment.reference is not None
        wanted: dict[str, Field] = {
            "return_url": payment.return_url,
            "error_on_requires_action": True if payment.return_url is None else None,  # the customer could not be sent anywhere
            **_EXPAND_CHARGE,
        }
        path = f"/v1/payment_intents/{quote(payment.reference)}/confirm"
        answer = await self.api.post(PspCall.CHARGE, path, wanted, key=f"{payment.operation_id}-confirm")
        if answer.response.status != 402:
            return self._of_intent(read(answer, PaymentIntent), payment, Source.CREATE)
        if answer.after_loss:
            raise PspOutcomeUnknown("Stripe declined after an answer was lost")
        error = decode(answer.response, ErrorBody).error
        return replace(self._blank(payment, EvidenceKind.DECLINED, Source.CREATE), code=decline_code(error))

    async def capture(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """See `Adapter`."""
        assert operation.amount_minor is not None
        amount = _amount(Money(operation.amount_minor, payment.money.currency))
        path = f"/v1/payment_intents/{quote(await self._intent_id(payment))}/capture"
        answer = await self.api.post(PspCall.CAPTURE, path, {"amount_to_capture": amount}, key=None)
        return self._of_intent(read(answer, PaymentIntent), payment, Source.MERCHANT)

    async def void(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """See `Adapter`."""
        del operation  # an authorization is released as a whole
        path = f"/v1/payment_intents/{quote(await self._intent_id(payment))}/cancel"
        answer = await self.api.post(PspCall.VOID, path, {}, key=None)
        return self._of_intent(read(answer, PaymentIntent), payment, Source.MERCHANT)

    async def refund(self, payment: Payment, refund: Refund) -> Evidence:
        """See `Adapter`."""
        wanted: dict[str, Field] = {
            "payment_intent": await self._intent_id(payment),
            "amount": _amount(refund.money),
            "metadata": {**metadata_of(payment), "florin_refund": str(refund.id)},
        }
        answer = await self.api.post(PspCall.REFUND, "/v1/refunds", wanted, key=str(refund.id))
        return self._of_refund(read(answer, StripeRefund), payment, Source.MERCHANT)

    async def fetch_refund(self, payment: Payment, refund: Refund, *, source: Source) -> Evidence:
        """See `Adapter`."""
        if refund.reference is not None:
            answer = await self.api.get(PspCall.FETCH, f"/v1/refunds/{quote(refund.reference)}")
            if answer.response.status != 404:
                return self._of_refund(read(answer, StripeRefund), payment, source)
        else:
            for listed in await self._refunds_of(await self._intent_id(payment)):
                evidence = self._of_refund(listed, payment, source)
                if evidence.refund_id == refund.id:
                    return evidence
        return replace(self._blank(payment, EvidenceKind.REFUND_NOT_FOUND, source), refund_id=refund.id, reference=None)

    async def fetch(self, payment: Payment, *, source: Source) -> Evidence:
        """See `Adapter`. Without a reference, searches the list of the time of the payment's creation for our metadata."""
        if payment.reference is None:
            return await self._search(payment, source)
        if payment.is_sync:
            answer = await self.api.get(PspCall.FETCH, f"/v1/payment_intents/{quote(payment.reference)}", _EXPAND_CHARGE)
            if answer.response.status != 404:
                return self._of_intent(read(answer, PaymentIntent), payment, source)
        else:
            session = await self._session(payment.reference)
            if session is not None:
                return self._of_session(session, source)
        return self._not_found(payment, source)

    async def close(self, payment: Payment, *, as_kind: EvidenceKind, source: Source) -> Evidence:
        """See `Adapter`. An object that Stripe does not close is over or paid, so it is fetched."""
        assert as_kind in (EvidenceKind.EXPIRED, EvidenceKind.CANCELED)
        seen = await self.fetch(payment, source=source)
        if seen.kind not in (EvidenceKind.OPENED, EvidenceKind.DECLINED) or seen.reference is None:
            return seen
        collection, verb = ("payment_intents", "cancel") if payment.is_sync else ("checkout/sessions", "expire")
        answer = await self.api.post(PspCall.CLOSE, f"/v1/{collection}/{quote(seen.reference)}/{verb}", {}, key=None)
        if answer.response.status >= 400:
            return await self.fetch(payment, source=source)
        if payment.is_sync:
            closed = self._of_intent(read(answer, PaymentIntent), payment, source)
        else:
            closed = self._of_session(read(answer, Session), source)
        return replace(closed, kind=as_kind) if closed.kind in _CLOSED else closed

    async def list_window(self, *, since: datetime, until: datetime) -> Sequence[Seen]:
        """See `Adapter`."""
        found: list[Seen] = []
        for intent in await self.api.window("/v1/payment_intents", PaymentIntent, since=since, until=until):
            ids = ids_of(intent.metadata)
            created_at = moment(intent.created)
            if ids is not None and since <= created_at < until:
                evidence = intent_evidence(intent, self.account_id, ids[2], source=Source.RECHECK)
                found.append(Seen(merchant_id=ids[0], payment_id=ids[1], evidence=evidence, created_at=created_at))
        return found

    async def list_events(self, *, since: datetime, until: datetime, only_rare: bool) -> Sequence[Notice]:
        """See `Adapter`."""
        wanted: list[Mapping[str, Field]] = [{"type": one} for one in events.RARE] if only_rare else [{}]
        found: list[events.Event] = []
        for fields in wanted:
            window = {**fields, "created": {"gte": int(since.timestamp()), "lte": int(until.timestamp()) + 1}}
            found += await self.api.pages("/v1/events", events.Event, window)
        found.reverse()  # Stripe lists the newest first, with times in seconds
        found.sort(key=lambda event: event.created)
        return [events.listed(event, self.account_id, is_live=self.mode == "live") for event in found]

    async def resolve(self, notice: Notice) -> Notice:
        """See `Adapter`. Fetches the PaymentIntent of a refund or dispute; one that is not ours leaves nothing to do."""
        assert notice.reference is not None
        answer = await self.api.get(PspCall.FETCH, f"/v1/payment_intents/{quote(notice.reference)}")
        intent = read(answer, PaymentIntent) if answer.response.status != 404 else None
        ids = ids_of(intent.metadata) if intent is not None else None
        # The released part of an authorization looks like a refund in older versions of the API.
        if intent is None or ids is None or intent.status != "succeeded":
            return replace(notice, evidence=(), reference=None)
        merchant_id, payment_id, operation_id = ids
        if notice.evidence:
            evidence = [replace(one, operation_id=operation_id) for one in notice.evidence]
            unresolved = made_at_the_psp(PaymentId(events.UNRESOLVED), evidence[0].reference or "")
            if evidence[0].refund_id == unresolved:
                evidence = [replace(one, refund_id=made_at_the_psp(payment_id, one.reference or "")) for one in evidence]
        else:
            evidence = await self._told_refunds(notice.reference, payment_id, operation_id)
        return replace(notice, merchant_id=merchant_id, payment_id=payment_id, evidence=tuple(evidence))

    async def _told_refunds(self, intent_id: str, payment_id: PaymentId, operation_id: OperationId) -> list[Evidence]:
        made = [one for one in await self._refunds_of(intent_id) if one.reason != events.RELEASED]
        try:
            return [refund_evidence(one, self.account_id, payment_id, operation_id, source=Source.WEBHOOK) for one in made]
        except PspOutcomeUnknown as error:  # Stripe did answer: asking again would not help
            raise Malformed(f"an impossible refund of Stripe: {error}") from error

    def read_webhook(self, headers: Mapping[bytes, bytes], body: bytes, *, now: float) -> Notice:
        """See `Adapter`."""
        return events.read(headers, body, self.webhook_secrets, self.account_id, is_live=self.mode == "live", now=now)

    async def _intent_id(self, payment: Payment) -> str:
        """The PaymentIntent of a payment: its reference, or the one of its page."""
        assert payment.reference is not None
        if payment.is_sync:
            return payment.reference
        session = await self._session(payment.reference)
        intent = session.payment_intent if session is not None else None
        if intent is None:
            raise PspRejected("Stripe has no PaymentIntent of this page")
        return intent if isinstance(intent, str) else intent.id

    async def _session(self, session_id: str) -> Session | None:
        fields = {"expand": ["payment_intent", "payment_intent.latest_charge"]}
        answer = await self.api.get(PspCall.FETCH, f"/v1/checkout/sessions/{quote(session_id)}", fields)
        return None if answer.response.status == 404 else read(answer, Session)

    async def _search(self, payment: Payment, source: Source) -> Evidence:
        since = payment.created_at - timedelta(minutes=1)
        operation = str(payment.operation_id)
        if payment.is_sync:
            until = payment.created_at + WINDOW_OF_TOKENS
            for intent in await self.api.window("/v1/payment_intents", PaymentIntent, since=since, until=until):
                if (intent.metadata or {}).get("florin_operation") == operation:
                    return self._of_intent(intent, payment, source)
        else:  # a page may be opened much later than its payment was accepted
            until = min(self.api.now(), payment.created_at + self.capabilities.key_lifetime) + timedelta(minutes=1)
            for session in await self.api.window("/v1/checkout/sessions", Session, since=since, until=until):
                if (session.metadata or {}).get("florin_operation") == operation:
                    found = await self._session(session.id)
                    return self._of_session(found or session, source)
        return self._not_found(payment, source)

    async def _refunds_of(self, intent_id: str) -> list[StripeRefund]:
        return await self.api.pages("/v1/refunds", StripeRefund, {"payment_intent": intent_id})

    def _of_intent(self, intent: PaymentIntent, payment: Payment, source: Source) -> Evidence:
        ids = ids_of(intent.metadata)
        return intent_evidence(intent, self.account_id, ids[2] if ids else _NOBODYS, source=source, reference=payment.reference)

    def _of_session(self, session: Session, source: Source) -> Evidence:
        ids = ids_of(session.metadata)
        return session_evidence(session, self.account_id, ids[2] if ids else _NOBODYS, source=source)

    def _of_refund(self, refund: StripeRefund, payment: Payment, source: Source) -> Evidence:
        return refund_evidence(refund, self.account_id, payment.id, payment.operation_id, source=source)

    def _not_found(self, payment: Payment, source: Source) -> Evidence:
        return replace(self._blank(payment, EvidenceKind.NOT_FOUND, source), reference=None)

    def _blank(self, payment: Payment, kind: EvidenceKind, source: Source) -> Evidence:
        return Evidence(
            kind=kind,
            source=source,
            psp_account_id=self.account_id,
            operation_id=payment.operation_id,
            reference=payment.reference,
        )


_CLOSED = frozenset({EvidenceKind.EXPIRED, EvidenceKind.CANCELED})
_NOBODYS = OperationId(events.UNRESOLVED)


def _is_about_token(response: Response) -> bool:
    """Return whether a PaymentIntent was refused because of its token, the only thing that it refers to."""
    if response.status == 400:
        return is_about_token(decode(response, ErrorBody))
    return response.status == 404


def _amount(money: Money) -> int:
    amount = to_stripe(money)
    if amount is None:
        raise PspRejected(f"Stripe cannot take {money}")
    return amount
