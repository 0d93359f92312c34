"""The Stripe adapter against programs that others wrote: localstripe, Stripe's own SDK, stripe-stateful-mock."""

import json
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest
import stripe

from core.errors import InvalidSignature, Malformed, PspBusy, PspOutcomeUnknown
from core.evidence import EvidenceKind
from core.ids import PSP_ACCOUNT, PspAccountId, encode_id
from core.money import Money
from core.signing import sign_timestamped
from server.clock import utc_now
from server.db.psps.accounts import PspAccount, add_psp_account
from server.http.client.client import open_client
from server.http.server.listener import bind
from server.psp.guard import Guard, Limits
from server.psp.stripe import events
from server.psp.stripe.api import RETRY_HEADER, headers
from server.psp.stripe.form import encode
from server.psp.stripe.objects import descriptor_suffix, from_stripe, to_stripe
from server.psp.transport import Deadlines, PspCall, PspTransport
from server.sealing import Sealer
from server.uuid7 import uuid7
from tests.conftest import HOUSE, program
from tests.support.counterparty import process
from tests.support.florin import UNSHARED, Florin, eventually, order

SECRET = "whsec_stripe_test"
ACCOUNT = PspAccountId(UUID(int=7))


@dataclass
class Stripe:
    """localstripe, and Florin's account there."""

    florin: Florin
    url: str
    account_id: PspAccountId

    async def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """What a Stripe user, or the customer, does."""
        response = await self.florin.http.request(
            method, self.url + path, headers={"authorization": "Bearer sk_test_other"}, **kwargs
        )
        assert response.status_code < 300, response.text
        return response.json() if response.content else None

    async def intents(self) -> list[dict[str, Any]]:
        """All PaymentIntents."""
        found: list[dict[str, Any]] = (await self.call("GET", "/v1/payment_intents?limit=100"))["data"]
        return found

    async def charge(self, token: str, **fields: Any) -> httpx2.Response:
        """Charge a token through Florin."""
        return await self.florin.post(order(confirm=True, token=token, **fields))

    async def act(self, payment_id: str, verb: str, **fields: Any) -> httpx2.Response:
        """Capture, cancel or refund through Florin."""
        key = {**self.florin.headers, "idempotency-key": uuid4().hex}
        url = f"{self.florin.api_url}/v1/payments/{payment_id}/{verb}"
        return await self.florin.http.post(url, json=fields, headers=key)


@pytest.fixture
async def at_stripe(florin: Florin, directory: Path) -> AsyncIterator[Stripe]:
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.support.local_stripe", str(listening.fileno())]
    async with process(*command, url=url, pass_fds=[listening.fileno()], cwd=HOUSE):
        sealer, account_id = Sealer.from_file(directory / "sealing.key"), PspAccountId(uuid7())
        account = PspAccount(
            id=account_id,
            psp="stripe",
            mode="test",
            base_url=url,
            sealed_api_key=sealer.seal("sk_test_florin", table="psp_accounts.api_key", row=account_id),
            sealed_webhook_secret=sealer.seal(SECRET, table="psp_accounts.webhook_secret", row=account_id),
        )
        await add_psp_account(florin.connection, account, now=utc_now())
        await florin.connection.execute("UPDATE merchants SET psp_account_id = $1", (account_id,))
        await florin.payments.psps.reload()
        hook = f"{florin.api_url}/v1/psp/stripe/{encode_id(PSP_ACCOUNT, account_id)}/webhooks"
        there = Stripe(florin, url, account_id)
        await there.call("POST", "/_config/webhooks/florin", json={"url": hook, "secret": SECRET})
        yield there
    listening.close()


async def all_are(there: Stripe, status: str) -> bool:
    return {one["status"] for one in await there.intents()} == {status}


async def until_found_out(florin: Florin, payment_id: str, status: str) -> None:
    """Let the follow-up job look at once, and the payment's time be over."""

    async def found() -> bool:
        await florin.connection.execute(
            "UPDATE payment_requests SET due_at = now(), expires_at = now() WHERE status IN ('UNKNOWN', 'PENDING')"
        )
        return bool((await florin.row(payment_id))["status"] == status)

    await eventually(found)


async def test_a_token_is_charged_once_and_refunded(at_stripe: Stripe) -> None:
    florin = at_stripe.florin
    response = await at_stripe.charge("pm_card_visa", metadata={"cart": "7"})
    assert (response.status_code, response.json()["status"]) == (201, "SUCCEEDED"), response.text
    payment_id = response.json()["id"]
    (intent,) = await at_stripe.intents()
    assert (intent["status"], intent["amount"], intent["currency"]) == ("succeeded", 1_990, "eur")
    assert intent["metadata"]["florin_kind"] == "token"

    first = await at_stripe.act(payment_id, "refunds", amount=990)
    rest = await at_stripe.act(payment_id, "refunds")
    too_much = await at_stripe.act(payment_id, "refunds", amount=1)

    assert [one.json()["status"] for one in (first, rest)] == ["SUCCEEDED", "SUCCEEDED"]
    assert (too_much.status_code, too_much.json()["code"]) == (409, "refund_too_large")
    refunds = (await at_stripe.call("GET", f"/v1/refunds?payment_intent={intent['id']}"))["data"]
    assert sorted(one["amount"] for one in refunds) == [990, 1_000]
    assert {one["balance"] for one in await florin.wallets()} == {0}


async def test_a_declined_card_is_looked_at_again(at_stripe: Stripe) -> None:
    response = await at_stripe.charge("pm_card_chargeCustomerFail")
    payment = response.json()["payment"]
    assert (response.status_code, response.json()["decline_code"]) == (402, "card_declined")
    assert (payment["status"], payment["did_check_again"]) == ("DECLINED", True)
    await eventually(lambda: all_are(at_stripe, "canceled"))  # behind the reply, so that nobody pays it in another way


async def test_an_unknown_token_is_refused(at_stripe: Stripe) -> None:
    response = await at_stripe.charge("pm_of_nobody")
    assert (response.status_code, response.json()["code"]) == (502, "psp_rejected")
    assert response.json()["payment"]["status"] == "CANCELED"


@pytest.mark.parametrize(("verb", "status"), [("capture", "SUCCEEDED"), ("cancel", "CANCELED")])
async def test_an_authorization_is_captured_or_voided(at_stripe: Stripe, verb: str, status: str) -> None:
    payment = (await at_stripe.charge("pm_card_visa", capture="manual")).json()
    assert payment["status"] == "AUTHORIZED"
    done = await at_stripe.act(payment["id"], verb)
    assert (done.status_code, done.json()["status"]) == (200, status), done.text
    assert [one["status"] for one in await at_stripe.intents()] == ["succeeded" if verb == "capture" else "canceled"]


async def test_a_customer_confirms_with_his_bank_and_the_webhook_tells(at_stripe: Stripe) -> None:
    """localstripe sends one webhook, signed, without a retry."""
    card = {"number": "4000000000003220", "exp_month": "12", "exp_year": "2030", "cvc": "123"}
    method = await at_stripe.call("POST", "/v1/payment_methods", json={"type": "card", "card": card})
    response = await at_stripe.charge(method["id"], return_url="https://shop.example/back")
    assert (response.status_code, response.json()["status"]) == (202, "PENDING"), response.text
    (intent,) = await at_stripe.intents()
    assert intent["status"] == "requires_action"

    answer = {"client_secret": intent["client_secret"], "success": True}
    await at_stripe.call("POST", f"/v1/payment_intents/{intent['id']}/_authenticate", json=answer)

    await at_stripe.florin.until_stored(response.json()["id"], "SUCCEEDED")
    events = await at_stripe.florin.rows("SELECT type, outcome FROM psp_events")
    assert events == [{"type": "payment_intent.succeeded", "outcome": "applied"}]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_confirmation_is_found_out_and_never_sent_again(at_stripe: Stripe, when: str) -> None:
    florin = at_stripe.florin
    await at_stripe.call("POST", "/_config/lose", json={"path": "/confirm$", "when": when})
    response = await at_stripe.charge("pm_card_visa")
    assert (response.status_code, response.json()["code"]) == (504, "psp_timeout"), response.text
    payment_id = response.json()["payment"]["id"]
    await until_found_out(florin, payment_id, "SUCCEEDED" if when == "after" else "CANCELED")
    requests = await at_stripe.call("GET", "/_config/requests")
    assert len([one for one in requests if one.endswith("/confirm")]) == 1
    assert [one["status"] for one in await at_stripe.intents()] == ["succeeded" if when == "after" else "canceled"]


async def test_a_lost_intent_is_found_by_our_metadata(at_stripe: Stripe) -> None:
    florin = at_stripe.florin
    await at_stripe.call("POST", "/_config/lose", json={"path": "/v1/payment_intents$", "when": "after"})
    response = await at_stripe.charge("pm_card_visa")
    assert response.status_code == 504, response.text
    await until_found_out(florin, response.json()["payment"]["id"], "CANCELED")
    assert [one["status"] for one in await at_stripe.intents()] == ["canceled"]


async def test_a_page_is_a_checkout_session(at_stripe: Stripe) -> None:
    florin = at_stripe.florin
    without = await florin.post(order())
    assert (without.status_code, without.json()["code"]) == (422, "no_provider")
    payment = await florin.create(return_url="https://shop.example/back", description="Coffee")
    session_id = payment["payment_url"].rpartition("/")[2]
    assert session_id.startswith("cs_test_")

    await at_stripe.call("POST", f"/_config/pay/{session_id}", json={"payment_method": "pm_card_visa"})
    await florin.until_stored(payment["id"], "SUCCEEDED")

    row = await florin.row(payment["id"])
    assert (row["reference"], row["captured_minor"]) == (session_id, 1_990)
    refunded = await at_stripe.act(payment["id"], "refunds")
    assert (refunded.status_code, refunded.json()["status"]) == (201, "SUCCEEDED"), refunded.text


async def test_a_page_is_closed_at_stripe_before_it_is_canceled(at_stripe: Stripe) -> None:
    payment = await at_stripe.florin.create(return_url="https://shop.example/back")
    session_id = payment["payment_url"].rpartition("/")[2]
    canceled = await at_stripe.act(payment["id"], "cancel")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "CANCELED"), canceled.text
    assert (await at_stripe.call("GET", f"/v1/checkout/sessions/{session_id}"))["status"] == "expired"


async def test_a_refund_in_the_dashboard_and_a_dispute_post(at_stripe: Stripe) -> None:
    florin = at_stripe.florin
    payment = (await at_stripe.charge("pm_card_visa")).json()
    (intent,) = await at_stripe.intents()
    refund = await at_stripe.call("POST", "/v1/refunds", json={"payment_intent": intent["id"], "amount": 500})
    dispute = {"id": "dp_1", "amount": 1_000, "currency": "eur", "status": "needs_response", "payment_intent": intent["id"]}
    told = [("refund.created", refund), ("charge.refunded", {"id": "ch_1", "payment_intent": intent["id"]})]
    inquiry = {**dispute, "status": "warning_needs_response"}
    told += [
        ("charge.dispute.created", inquiry),
        ("charge.dispute.funds_withdrawn", dispute),
        ("charge.dispute.created", dispute),
    ]
    told += [("charge.dispute.closed", {**dispute, "status": "won"})]
    hook = f"{florin.api_url}/v1/psp/stripe/{encode_id(PSP_ACCOUNT, at_stripe.account_id)}/webhooks"
    for number, (event_type, thing) in enumerate(told):
        body = json.dumps({"id": f"evt_{number}", "type": event_type, "data": {"object": thing}}).encode()
        signature = {"stripe-signature": sign_timestamped(SECRET, timestamp=int(time.time()), body=body)}
        assert (await florin.http.post(hook, content=body, headers=signature)).status_code == 200

    after = await florin.read(payment["id"])
    assert (after["refunded_amount"], after["disputed_amount"]) == (500, 0)
    assert {one["kind"]: one["balance"] for one in await florin.wallets()} == {"available": 1_490}
    assert [row["kind"] for row in await florin.rows("SELECT kind FROM findings")] == ["dispute"]


def test_the_sdk_believes_our_signatures_and_we_believe_the_sdks() -> None:
    body = json.dumps({"id": "evt_1", "object": "event", "type": "charge.updated", "data": {"object": {"id": "ch_1"}}}).encode()
    now = int(time.time())
    ours = sign_timestamped(SECRET, timestamp=now, body=body)
    event = stripe.Webhook.construct_event(body, ours, SECRET)
    assert event["id"] == "evt_1"

    theirs = f"t={now},v1={stripe.WebhookSignature._compute_signature(f'{now}.{body.decode()}', SECRET)}"
    rotating = f"t={now},v1={'0' * 64},v0=1,v1={theirs.rpartition('=')[2]}"
    for header in (theirs, rotating):
        for secrets in ((SECRET,), ("whsec_new", SECRET)):
            given = {b"stripe-signature": header.encode()}
            notice = events.read(given, body, secrets, ACCOUNT, is_live=False, now=now)
            assert (notice.event_id, notice.evidence) == ("evt_1", ())


@pytest.mark.parametrize("shift_seconds", [-301, 301])
def test_an_old_or_forged_webhook_of_stripe_is_refused(shift_seconds: int) -> None:
    now = int(time.time())
    old = sign_timestamped(SECRET, timestamp=now + shift_seconds, body=b"{}")
    forged = sign_timestamped("whsec_other", timestamp=now, body=b"{}")
    for header in (old, forged, "", "t=1", "v1=00"):
        with pytest.raises(InvalidSignature):
            events.read({b"stripe-signature": header.encode()}, b"{}", (SECRET,), ACCOUNT, is_live=False, now=now)


def test_a_signed_body_that_is_no_event_is_malformed() -> None:
    now = int(time.time())
    for body in (b"{}", b"[]", b"\xff", b'{"id":"e","type":"payment_intent.succeeded","data":{"object":{"id":1}}}'):
        signed = {b"stripe-signature": sign_timestamped(SECRET, timestamp=now, body=body).encode()}
        with pytest.raises(Malformed):
            events.read(signed, body, (SECRET,), ACCOUNT, is_live=False, now=now)


def test_a_partial_capture_and_an_end_by_itself_are_read_as_stripe_documents_them() -> None:
    ids = {f"florin_{name}": str(UUID(int=1)) for name in ("merchant", "payment", "operation")}
    intent = {"id": "pi_1", "amount": 5_000, "currency": "jpy", "created": 1, "metadata": {**ids, "florin_kind": "token"}}
    cases: list[tuple[dict[str, object], EvidenceKind, int | None]] = [
        ({"status": "succeeded", "amount_received": 3_000}, EvidenceKind.CAPTURED, 3_000),
        ({"status": "canceled", "cancellation_reason": "automatic"}, EvidenceKind.EXPIRED, None),
        ({"status": "requires_capture", "amount_received": 0}, EvidenceKind.AUTHORIZED, 5_000),
    ]
    for fields, kind, amount in cases:
        thing: dict[str, object] = {**intent, **fields}
        event = {"id": "e", "type": "payment_intent.canceled", "data": {"object": thing}}
        read = msgspec.json.decode(msgspec.json.encode(event), type=events.Event)
        (evidence,) = events.notice_of(read, ACCOUNT, is_live=False).evidence
        assert (evidence.kind, evidence.money.amount_minor if evidence.money else None) == (kind, amount)


@pytest.mark.parametrize(
    ("money", "amount"),
    [
        (Money(1_990, "EUR"), 1_990),
        (Money(500, "JPY"), 500),
        (Money(500, "ISK"), 50_000),
        (Money(500, "UGX"), 50_000),
        (Money(50_000, "MGA"), 500),
        (Money(50_050, "MGA"), None),
        (Money(1_230, "KWD"), 1_230),
        (Money(1_234, "KWD"), None),
    ],
)
def test_amounts_are_stripes_own(money: Money, amount: int | None) -> None:
    assert to_stripe(money) == amount
    if amount is not None:
        assert from_stripe(amount, money.currency.lower()) == money


@asynccontextmanager
async def a_wire(url: str) -> AsyncIterator[PspTransport]:
    guard = Guard(Limits(), UNSHARED, patience_seconds=1)
    deadlines = Deadlines(seconds=5, read_seconds=5, connect_seconds=1)
    async with open_client() as http:
        yield PspTransport(
            http,
            guard,
            base_url=url,
            headers=headers("sk_test_florin"),
            deadlines=deadlines,
            observe=lambda *_: None,
            rng=random.Random(1),
            retry_header=RETRY_HEADER,
        )


@pytest.fixture
async def stateful_mock() -> AsyncIterator[PspTransport]:
    """stripe-stateful-mock (npm): it knows charges only, but replays idempotent requests and fails on demand."""
    node = program("node")
    package = HOUSE / ".node" / "node_modules" / "stripe-stateful-mock"
    if not package.exists():
        program("stripe-stateful-mock: npm install --prefix .node stripe-stateful-mock@0.0.16")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f"require('http').createServer(require({str(package)!r}).createExpressApp()).listen({port}, '127.0.0.1')"
    url = f"http://127.0.0.1:{port}"
    async with process(node, "-e", script, url=url, env={"LOG_LEVEL": "silent"}), a_wire(url) as wire:
        yield wire


async def charge_there(wire: PspTransport, source: str, key: str) -> tuple[int, dict[str, Any]]:
    body = encode({"amount": 1_990, "currency": "eur", "source": source})
    answer = await wire.call(PspCall.CHARGE, "POST", "/v1/charges", body=body, headers=[("idempotency-key", key)], is_keyed=True)
    return answer.response.status, json.loads(answer.response.body)


async def test_a_repeated_key_is_one_charge(stateful_mock: PspTransport) -> None:
    first = await charge_there(stateful_mock, "tok_visa", "k")
    again = await charge_there(stateful_mock, "tok_visa", "k")
    other = await charge_there(stateful_mock, "tok_visa", "l")
    assert first[0] == again[0] == 200
    assert first[1]["id"] == again[1]["id"] != other[1]["id"]


async def test_what_stripe_has_no_room_for_was_not_done(stateful_mock: PspTransport) -> None:
    with pytest.raises(PspBusy):
        await charge_there(stateful_mock, "tok_429", "k")
    assert stateful_mock.guard.concurrency.limit < stateful_mock.guard.concurrency.ceiling


async def test_a_500_is_repeated_with_its_key_and_is_then_unknown(stateful_mock: PspTransport) -> None:
    with pytest.raises(PspOutcomeUnknown):
        await charge_there(stateful_mock, "tok_500", "k")
    assert (await charge_there(stateful_mock, f"tok_429|tok_visa|{uuid4().hex}", "m"))[0] == 200


async def test_a_decline_of_stripe_is_an_answer(stateful_mock: PspTransport) -> None:
    status, body = await charge_there(stateful_mock, "tok_chargeDeclinedInsufficientFunds", "k")
    assert (status, body["error"]["decline_code"]) == (402, "insufficient_funds")


async def test_a_charge_that_stripe_forgets_is_not_found(stateful_mock: PspTransport) -> None:
    status, body = await charge_there(stateful_mock, "tok_forget", "k")
    assert status == 200
    answer = await stateful_mock.call(PspCall.FETCH, "GET", f"/v1/charges/{body['id']}")
    assert answer.response.status == 404


async def test_what_stripes_webhooks_did_not_tell_is_read_from_its_list(at_stripe: Stripe) -> None:
    florin = at_stripe.florin
    card = {"number": "4000000000003220", "exp_month": "12", "exp_year": "2030", "cvc": "123"}
    method = await at_stripe.call("POST", "/v1/payment_methods", json={"type": "card", "card": card})
    payment = (await at_stripe.charge(method["id"], return_url="https://shop.example/back")).json()
    await at_stripe.call("POST", "/_config/webhooks/florin", json={"url": at_stripe.url, "secret": SECRET, "events": []})
    (intent,) = await at_stripe.intents()
    answer = {"client_secret": intent["client_secret"], "success": True}
    await at_stripe.call("POST", f"/v1/payment_intents/{intent['id']}/_authenticate", json=answer)
    await florin.connection.execute("UPDATE payment_requests SET due_at = now() + interval '1 hour'")
    await florin.connection.execute(
        "UPDATE psp_states SET events_due_at = NULL, events_read_until = now() - interval '10 minutes'"
    )
    await florin.until_stored(payment["id"], "SUCCEEDED")

    adapter = await florin.payments.psps.of(at_stripe.account_id)
    now = utc_now()
    (seen,) = await adapter.list_window(since=now - timedelta(minutes=5), until=now + timedelta(minutes=5))
    assert (seen.evidence.kind, seen.payment_id) == (EvidenceKind.CAPTURED, (await florin.row(payment["id"]))["id"])


def test_what_stripe_would_refuse_of_a_descriptor_is_left_out() -> None:
    cases = {"Shop *7": "Shop 7", "1234": None, "<\\'>": None, None: None, "Kaffee": "Kaffee"}
    assert {text: descriptor_suffix(text) for text in cases} == cases


def test_one_event_that_cannot_be_read_keeps_nobody_from_the_others() -> None:
    odd = {"id": "re_1", "amount": 5, "currency": "eur", "status": None, "payment_intent": "pi_1"}
    event = {"id": "e", "type": "refund.updated", "data": {"object": odd}}
    read = msgspec.json.decode(msgspec.json.encode(event), type=events.Event)
    notice = events.listed(read, ACCOUNT, is_live=False)
    assert (notice.evidence, notice.problem is not None) == ((), True)
