"""The Stripe adapter against other projects' programs: localstripe, Stripe's own SDK, stripe-stateful-mock."""

import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from core.evidence import EvidenceKind
from core.ids import PSP_ACCOUNT, PspAccountId, encode_id
from core.signing import sign_timestamped
from server.clock import utc_now
from server.db.psps.accounts import PspAccount, add_psp_account
from server.http.server.listener import bind
from server.sealing import Sealer
from server.uuid7 import uuid7
from tests.conftest import ROOT
from tests.support.counterparty import process
from tests.support.florin import Florin, eventually, order
from tests.support.stripe import SECRET


@dataclass
class Stripe:
    """localstripe, and Florin's account there."""

    florin: Florin
    url: str
    account_id: PspAccountId

    async def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """The calls of a Stripe user, or the customer."""
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
    async with process(*command, url=url, pass_fds=[listening.fileno()], cwd=ROOT):
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
    await eventually(lambda: all_are(at_stripe, "canceled"))  # in the background, so that nobody pays it in another way


async def test_an_unknown_token_is_refused(at_stripe: Stripe) -> None:
    response = await at_stripe.charge("pm_of_nobody")
    assert (response.status_code, response.json()["code"]) == (422, "token_unknown")
    assert response.json()["payment"]["status"] == "CANCELED"


@pytest.mark.parametrize(("verb", "status"), [("capture", "SUCCEEDED"), ("cancel", "CANCELED")])
async def test_an_authorization_is_captured_or_voided(at_stripe: Stripe, verb: str, status: str) -> None:
    payment = (await at_stripe.charge("pm_card_visa", capture="manual")).json()
    assert payment["status"] == "AUTHORIZED"
    done = await at_stripe.act(payment["id"], verb)
    assert (done.status_code, done.json()["status"]) == (200, status), done.text
    assert [one["status"] for one in await at_stripe.intents()] == ["succeeded" if verb == "capture" else "canceled"]


async def test_a_customer_confirms_with_the_bank_and_the_webhook_reports_it(at_stripe: Stripe) -> None:
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


async def test_events_missed_by_stripes_webhooks_are_read_from_its_list(at_stripe: Stripe) -> None:
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
