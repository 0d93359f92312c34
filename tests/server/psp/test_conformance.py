"""The contract of `server.psp.adapter`, checked for every provider's adapter against its counterparty over HTTP."""

import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta

import pytest
import trio
from msgspec.structs import replace

from core.errors import InvalidSignature, Malformed, PspRejected, PspUnreachable, Unprocessable
from core.evidence import Evidence, EvidenceKind, Source
from core.ids import MerchantId, OperationId, PaymentId, RefundId
from core.money import Money
from core.payment import Capture, OperationKind, Payment, PendingOperation, Status
from core.refund import Refund, RefundStatus
from server.clock import utc_now
from server.psp.providers import PROVIDERS, provider_of
from server.uuid7 import uuid7
from tests.support.providers import API_KEYS, HARNESSES, Counterparty

AMOUNT = 1_990


@pytest.fixture(params=PROVIDERS)
async def there(request: pytest.FixtureRequest) -> AsyncIterator[Counterparty]:
    """A provider's counterparty."""
    async with HARNESSES[request.param]() as opened:
        yield opened


def a_payment(there: Counterparty, *, is_sync: bool = True, capture: Capture = Capture.AUTOMATIC) -> Payment:
    now = utc_now()
    return Payment(
        id=PaymentId(uuid7()),
        merchant_id=MerchantId(uuid7()),
        psp_account_id=there.adapter.account_id,
        operation_id=OperationId(uuid7()),
        order_id="order-1",
        money=Money(AMOUNT, "EUR"),
        status=Status.PENDING,
        version=1,
        expires_at=now + timedelta(minutes=30),
        created_at=now,
        updated_at=now,
        due_at=None,
        is_sync=is_sync,
        capture=capture,
        return_url="https://shop.example/back",
    )


async def charge(there: Counterparty, payment: Payment, token: str) -> tuple[Payment, Evidence]:
    """Charge as the flow does: in one step, or prepared first."""
    if there.adapter.two_steps is not None:
        prepared = await there.adapter.two_steps.prepare(payment, token)
        assert (prepared.kind, prepared.reference is None) == (EvidenceKind.OPENED, False)
        payment = replace(payment, reference=prepared.reference)
    evidence = await there.adapter.charge(payment, token)
    return replace(payment, reference=payment.reference or evidence.reference), evidence


async def or_as_it_stands(there: Counterparty, payment: Payment, call: Awaitable[Evidence]) -> Evidence:
    """The result of a repeated call: the PSP may refuse it, because it is done."""
    try:
        return await call
    except PspRejected:
        return await there.adapter.fetch(payment, source=Source.RECHECK)


def require_about(evidence: Evidence, payment: Payment) -> None:
    """Require that evidence names the account, the operation and the object."""
    assert (evidence.psp_account_id, evidence.operation_id) == (payment.psp_account_id, payment.operation_id)


def test_every_provider_has_a_harness_and_a_record_of_its_own_name() -> None:
    assert set(HARNESSES) == set(PROVIDERS)
    assert all(name == provider.name for name, provider in PROVIDERS.items())


async def test_the_adapter_is_of_its_account(there: Counterparty) -> None:
    await trio.lowlevel.checkpoint()
    adapter = there.adapter
    assert (PROVIDERS[adapter.psp].name, adapter.mode, adapter.is_enabled) == (adapter.psp, "test", True)
    assert adapter.capabilities.key_lifetime > timedelta(hours=1)
    assert adapter.takes(Money(AMOUNT, "EUR"))
    assert not adapter.takes(Money(0, "EUR"))


async def test_a_token_is_charged_and_found(there: Counterparty) -> None:
    payment, charged = await charge(there, a_payment(there), there.paying)
    require_about(charged, payment)
    assert (charged.kind, charged.money) == (EvidenceKind.CAPTURED, payment.money)
    assert charged.reference
    for known in (payment, replace(payment, reference=None)):  # by its reference, or by our metadata
        seen = await there.adapter.fetch(known, source=Source.RECHECK)
        assert (seen.kind, seen.reference, seen.money) == (EvidenceKind.CAPTURED, charged.reference, payment.money)
        assert seen.source is Source.RECHECK


async def test_a_charge_that_is_repeated_is_one_charge(there: Counterparty) -> None:
    payment = a_payment(there)
    known, first = await charge(there, payment, there.paying)
    _, again = await charge(there, payment, there.paying)
    assert (again.kind, again.reference) == (EvidenceKind.CAPTURED, first.reference)
    now = utc_now()
    listed = await there.adapter.list_window(since=now - timedelta(minutes=2), until=now + timedelta(minutes=1))
    assert [one.payment_id for one in listed].count(payment.id) == 1
    (own,) = (one for one in listed if one.payment_id == payment.id)
    assert (own.merchant_id, own.evidence.kind) == (known.merchant_id, EvidenceKind.CAPTURED)


async def test_a_declined_token_is_declined_with_its_code(there: Counterparty) -> None:
    payment, declined = await charge(there, a_payment(there), there.declined)
    require_about(declined, payment)
    assert declined.kind is EvidenceKind.DECLINED
    assert declined.code
    assert (await there.adapter.fetch(payment, source=Source.RECHECK)).kind is EvidenceKind.DECLINED


async def test_an_authorization_is_captured_once(there: Counterparty) -> None:
    payment, authorized = await charge(there, a_payment(there, capture=Capture.MANUAL), there.paying)
    assert (authorized.kind, authorized.money) == (EvidenceKind.AUTHORIZED, payment.money)
    amount = AMOUNT - 500 if there.captures_in_part else AMOUNT
    operation = PendingOperation(id=OperationId(uuid7()), kind=OperationKind.CAPTURE, amount_minor=amount, since=utc_now())
    captured = await there.adapter.capture(payment, operation)
    again = await or_as_it_stands(there, payment, there.adapter.capture(payment, operation))
    for evidence in (captured, again):
        assert (evidence.kind, evidence.money) == (EvidenceKind.CAPTURED, Money(amount, "EUR"))


async def test_an_authorization_is_voided_once(there: Counterparty) -> None:
    payment, _ = await charge(there, a_payment(there, capture=Capture.MANUAL), there.paying)
    operation = PendingOperation(id=payment.void_id, kind=OperationKind.VOID, amount_minor=None, since=utc_now())
    assert (await there.adapter.void(payment, operation)).kind is EvidenceKind.CANCELED
    again = await or_as_it_stands(there, payment, there.adapter.void(payment, operation))
    assert again.kind is EvidenceKind.CANCELED
    assert (await there.adapter.fetch(payment, source=Source.RECHECK)).kind is EvidenceKind.CANCELED


async def test_a_refund_is_made_once_and_found(there: Counterparty) -> None:
    payment, _ = await charge(there, a_payment(there), there.paying)
    payment = replace(payment, status=Status.SUCCEEDED, captured_minor=AMOUNT)
    now = utc_now()
    refund = Refund(
        id=RefundId(uuid7()),
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
        psp_account_id=payment.psp_account_id,
        money=Money(500, "EUR"),
        status=RefundStatus.PENDING,
        created_at=now,
        updated_at=now,
        due_at=None,
    )
    unknown = await there.adapter.fetch_refund(payment, refund, source=Source.RECHECK)
    assert (unknown.kind, unknown.refund_id) == (EvidenceKind.REFUND_NOT_FOUND, refund.id)
    first, again = [await there.adapter.refund(payment, refund) for _ in range(2)]
    assert first.kind in (EvidenceKind.REFUND_SUCCEEDED, EvidenceKind.REFUND_PENDING)
    assert (first.refund_id, first.money) == (refund.id, refund.money)
    assert again.reference == first.reference
    found = await there.adapter.fetch_refund(payment, refund, source=Source.RECHECK)
    assert (found.kind, found.refund_id, found.reference) == (first.kind, refund.id, first.reference)


async def test_an_unknown_operation_is_not_found(there: Counterparty) -> None:
    payment = a_payment(there)
    seen = await there.adapter.fetch(payment, source=Source.ACCESS)
    require_about(seen, payment)
    assert seen.kind is EvidenceKind.NOT_FOUND
    closed = await there.adapter.close(payment, as_kind=EvidenceKind.CANCELED, source=Source.MERCHANT)
    assert closed.kind is EvidenceKind.NOT_FOUND


async def test_a_page_is_opened_once_and_closed(there: Counterparty) -> None:
    assert there.adapter.capabilities.hosted_page
    payment = a_payment(there, is_sync=False)
    opened, again = [await there.adapter.create_intent(payment) for _ in range(2)]
    require_about(opened, payment)
    assert opened.kind is EvidenceKind.OPENED
    assert opened.payment_url
    assert (again.reference, again.payment_url) == (opened.reference, opened.payment_url)
    payment = replace(payment, reference=opened.reference, payment_url=opened.payment_url)
    for _ in range(2):
        closed = await there.adapter.close(payment, as_kind=EvidenceKind.EXPIRED, source=Source.EXPIRY)
        assert closed.kind is EvidenceKind.EXPIRED
    seen = await there.adapter.fetch(payment, source=Source.RECHECK)
    assert seen.kind in (EvidenceKind.EXPIRED, EvidenceKind.CANCELED)


async def test_a_paid_payment_is_not_closed(there: Counterparty) -> None:
    payment, _ = await charge(there, a_payment(there), there.paying)
    closed = await there.adapter.close(payment, as_kind=EvidenceKind.CANCELED, source=Source.MERCHANT)
    assert (closed.kind, closed.money) == (EvidenceKind.CAPTURED, payment.money)


async def test_a_page_that_is_paid_is_captured_and_listed(there: Counterparty) -> None:
    payments = []
    for _ in range(3):
        payment = a_payment(there, is_sync=False)
        opened = await there.adapter.create_intent(payment)
        await there.pay(opened)
        payment = replace(payment, reference=opened.reference, payment_url=opened.payment_url)
        seen = await there.adapter.fetch(payment, source=Source.RECHECK)
        assert (seen.kind, seen.money) == (EvidenceKind.CAPTURED, payment.money)
        payments.append(payment)
    if not there.lists_events:
        return  # localstripe has no such list; Stripe's is read from its documented JSON in test_stripe.py
    now = utc_now()
    notices = await there.adapter.list_events(since=now - timedelta(minutes=2), until=now + timedelta(minutes=1), only_rare=False)
    captured = [one.payment_id for one in notices if one.evidence and one.evidence[0].kind is EvidenceKind.CAPTURED]
    assert captured == [payment.id for payment in payments], "oldest first"
    assert len({one.event_id for one in notices}) == len(notices)


@pytest.mark.parametrize("age_seconds", [0, 86_400, -86_400])
async def test_a_webhook_that_is_forged_stale_or_no_event_is_refused(there: Counterparty, age_seconds: int) -> None:
    await trio.lowlevel.checkpoint()
    now, body = int(time.time()), b"{}"
    with pytest.raises(InvalidSignature):
        there.adapter.read_webhook({}, body, now=now)
    headers = there.sign(body, now - age_seconds)
    if age_seconds:
        with pytest.raises(InvalidSignature):
            there.adapter.read_webhook(headers, body, now=now)
        return
    with pytest.raises(InvalidSignature):
        there.adapter.read_webhook(headers, body + b" ", now=now)
    with pytest.raises(Malformed):
        there.adapter.read_webhook(headers, body, now=now)


async def test_a_psp_that_cannot_be_reached_has_received_nothing(there: Counterparty) -> None:
    payment = a_payment(there)
    for call in (
        there.moved.create_intent(payment),
        charge(dataclasses.replace(there, adapter=there.moved), payment, there.paying),
        there.moved.fetch(replace(payment, reference="ref_1"), source=Source.RECHECK),
    ):
        with pytest.raises(PspUnreachable):
            await call


@pytest.mark.parametrize("name", PROVIDERS)
def test_secrets_that_cannot_be_are_refused(name: str) -> None:
    provider = provider_of(name)
    with pytest.raises(Unprocessable):
        provider.require_api_key("what is this", "test")
    with pytest.raises(Unprocessable):
        provider.require_webhook_secret("what is this")
    provider.require_webhook_secret(f"{provider.webhook_secret_prefix}x")
    provider.require_api_key(API_KEYS[name], "test")


@pytest.mark.parametrize("name", ["sandbox", "stripe"])
def test_a_test_key_is_not_accepted_as_a_live_one(name: str) -> None:
    with pytest.raises(Unprocessable):
        provider_of(name).require_api_key(API_KEYS[name], "live")
