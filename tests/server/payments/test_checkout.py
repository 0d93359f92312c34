"""The main flow over real HTTP: from the shop's request to a paid wallet and a notified merchant."""

import re
import time

import msgspec
import pytest
import trio

from core.signing import sign_timestamped
from tests.support.florin import BLOCKED, REFUSED, Florin, eventually, order
from tests.support.payments import captured_event, send_event


@pytest.mark.any_postgres
async def test_a_paid_payment_reaches_wallet_and_merchant(florin: Florin) -> None:
    payment = await florin.create()
    assert payment["status"] == "PENDING"
    assert payment["success"] == 0

    await florin.pay(payment)
    event = await florin.until_told(payment["id"], "payment.succeeded")

    assert event["seq"] == 1
    assert event["data"]["captured_amount"] == 1_990
    assert await florin.wallets() == [{"currency": "EUR", "kind": "available", "balance": 1_990}]
    row = await florin.row(payment["id"])
    assert (row["status"], row["captured_minor"]) == ("SUCCEEDED", 1_990)
    logs = await florin.rows("SELECT source, kind, to_status FROM payment_logs ORDER BY version")
    assert [tuple(log.values()) for log in logs] == [
        ("create", "accepted", "PENDING"),
        ("create", "opened", "PENDING"),
        ("webhook", "captured", "SUCCEEDED"),
    ]


async def test_a_refused_card_leaves_the_page_open_for_another(florin: Florin) -> None:
    payment = await florin.create()

    refused = await florin.pay(payment, REFUSED)
    assert refused.status_code == 402
    assert "Try another one" in refused.text
    # The two webhooks may overtake each other, as anywhere; here the first one is awaited.
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_logs WHERE kind = 'attempt_failed'"))
    await florin.pay(payment)

    await florin.until_told(payment["id"], "payment.succeeded")
    kinds = [row["kind"] for row in await florin.rows("SELECT kind FROM payment_logs ORDER BY version")]
    assert kinds == ["accepted", "opened", "attempt_failed", "captured"]


@pytest.mark.any_postgres
async def test_a_card_refused_for_good_declines_only_after_a_second_look(florin: Florin) -> None:
    payment = await florin.create()

    await florin.pay(payment, BLOCKED)

    event = await florin.until_told(payment["id"], "payment.declined")
    assert event["data"]["did_check_again"] is True
    assert event["data"]["success"] == 0
    kinds = [(row["source"], row["kind"]) for row in await florin.rows("SELECT * FROM payment_logs ORDER BY version")]
    assert kinds[2:] == [("webhook", "declined"), ("recheck", "declined")]
    assert await florin.wallets() == []


async def test_the_status_is_right_before_the_webhook_arrives(florin: Florin) -> None:
    await florin.control(webhooks="hold")
    payment = await florin.create()
    await florin.pay(payment)

    assert (await florin.read(payment["id"]))["status"] == "SUCCEEDED"

    await florin.control(webhooks="release")
    await florin.until_told(payment["id"], "payment.succeeded")
    await eventually(lambda: florin.rows("SELECT 1 FROM psp_events WHERE outcome = 'nothing_new'"))
    assert len(await florin.rows("SELECT 1 FROM ledger_entries")) == 2


async def test_an_abandoned_payment_expires_and_can_no_longer_be_paid(florin: Florin) -> None:
    payment = await florin.create(expires_in=1)

    await florin.until_told(payment["id"], "payment.expired")

    assert "can no longer be made" in (await florin.pay(payment)).text
    assert (await florin.read(payment["id"]))["status"] == "EXPIRED"


async def test_a_payment_made_while_it_expires_succeeds(florin: Florin) -> None:
    await florin.control(webhooks="hold")
    payment = await florin.create(expires_in=1)
    await florin.pay(payment)

    event = await florin.until_told(payment["id"], "payment.succeeded")

    assert event["data"]["late"] is False
    await florin.control(webhooks="release")


async def test_a_forged_webhook_changes_nothing(florin: Florin) -> None:
    payment = await florin.create()
    row = await florin.row(payment["id"])
    url = florin.demo.psp_webhook_url(florin.api_url)
    body = msgspec.json.encode(captured_event(florin, row))

    def signature(secret: str, at: float) -> dict[str, str]:
        return {"sandbox-signature": sign_timestamped(secret, timestamp=int(at), body=body)}

    forged = [
        {},
        {"sandbox-signature": "nonsense"},
        signature("another secret", time.time()),
        signature(florin.demo.psp_webhook_secret, time.time() - 3_600),
    ]
    for headers in forged:
        response = await florin.http.post(url, content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["code"] == "invalid_signature"
    assert (await florin.row(payment["id"]))["version"] == row["version"]
    assert await florin.rows("SELECT 1 FROM psp_events") == []

    genuine = await florin.http.post(url, content=body, headers=signature(florin.demo.psp_webhook_secret, time.time()))
    assert genuine.status_code == 200
    assert (await florin.row(payment["id"]))["status"] == "SUCCEEDED"


async def test_repeated_and_reordered_webhooks_post_once(florin: Florin) -> None:
    payment = await florin.create()
    row = await florin.row(payment["id"])
    captured = captured_event(florin, row)
    expired = {**captured, "id": "sbe_2", "type": "intent.expired", "data": {**captured["data"], "status": "expired"}}

    async with trio.open_nursery() as nursery:
        for event in (captured, captured, expired, captured, expired):
            nursery.start_soon(send_event, florin, event)

    stored = await florin.row(payment["id"])
    assert stored["status"] == "SUCCEEDED"
    assert len(await florin.rows("SELECT 1 FROM ledger_entries")) == 2
    assert (await florin.wallets())[0]["balance"] == 1_990


async def test_money_that_does_not_match_goes_to_suspense(florin: Florin) -> None:
    payment = await florin.create()
    event = captured_event(florin, await florin.row(payment["id"]))
    event["data"]["captured_minor"] = 5

    await send_event(florin, event)

    assert (await florin.row(payment["id"]))["status"] == "PENDING"
    findings = await florin.rows("SELECT kind FROM findings")
    assert [row["kind"] for row in findings] == ["evidence_mismatch"]
    entries = await florin.rows("SELECT kind, amount_minor FROM ledger_entries WHERE account = 'suspense'")
    assert entries == [{"kind": "suspense", "amount_minor": 5}]
    assert await florin.wallets() == []


async def test_a_webhook_of_an_unknown_payment_is_kept_and_answered(florin: Florin) -> None:
    payment = await florin.create()
    event = captured_event(florin, await florin.row(payment["id"]))
    event["data"]["payment_id"] = florin.demo.merchant_id

    await send_event(florin, event)

    kept = await florin.rows("SELECT event_id, state FROM psp_inbox")
    assert kept == [{"event_id": event["id"], "state": "WAITING"}]


async def test_an_answer_that_is_lost_leaves_the_payment_unknown_until_it_is_found(florin: Florin) -> None:
    await florin.control(create="lose")
    response = await florin.post(order(), key="lost")
    assert response.status_code == 504
    problem = response.json()
    assert (problem["code"], problem["payment"]["status"]) == ("psp_timeout", "UNKNOWN")
    await florin.control(create="answer")

    again = await florin.post(order(), key="lost")

    assert again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"
    payment = again.json()
    assert payment["status"] == "PENDING"
    assert payment["id"] == problem["payment"]["id"]
    await florin.pay(payment)
    await florin.until_told(payment["id"], "payment.succeeded")


async def test_an_unknown_payment_is_found_by_the_recheck(florin: Florin) -> None:
    await florin.control(create="lose")
    payment_id = (await florin.post(order())).json()["payment"]["id"]
    await florin.control(create="answer")
    await florin.connection.execute("UPDATE payment_requests SET due_at = now()")

    row = await florin.until_stored(payment_id, "PENDING")

    assert row["reference"] is not None
    assert row["payment_url"] is not None


async def test_the_demo_shop_sells(florin: Florin) -> None:
    page = await florin.http.get(florin.shop_url)
    cart = re.search(r'name="cart" value="(\w+)"', page.text)
    assert cart is not None
    form = {"cart": cart[1], "item": "coffee"}
    replies = []

    async def click() -> None:
        replies.append(await florin.http.post(f"{florin.shop_url}/checkout", data=form))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(click)
        nursery.start_soon(click)

    assert {reply.status_code for reply in replies} == {303}
    assert len({reply.headers["location"] for reply in replies}) == 1
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 1
    paid = await florin.http.post(replies[0].headers["location"], data={"card": "4242 4242 4242 4242"})
    assert paid.status_code == 303
    back = await florin.http.get(paid.headers["location"])
    assert "Paid. Thank you" in back.text
