"""PSP events by webhook and list: in and out of order, repeated, forged, unreadable; and acts of the PSP itself."""

import time
from typing import Any
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest

from core.errors import InvalidSignature
from core.ids import PspAccountId
from core.money import Money
from core.signing import sign_timestamped
from server.clock import utc_now
from server.db.merchants.audit import Act
from server.db.psps.accounts import rotate_webhook_secret
from server.db.psps.inbox import NOBODY
from server.jobs.psp_inbox import read_list
from server.psp.adapter import Notice
from server.psp.sandbox.objects import Event, notice_of
from server.sealing import Sealer
from server.uuid7 import uuid7
from tests.support.florin import Florin, eventually, order
from tests.support.payments import reference_of


async def tell(
    florin: Florin, body: bytes, *, secret: str | None = None, headers: dict[str, str] | None = None
) -> httpx2.Response:
    """Send a webhook as the sandbox PSP signs it."""
    signature = sign_timestamped(secret or florin.demo.psp_webhook_secret, timestamp=int(time.time()), body=body)
    given = {"sandbox-signature": signature, **(headers or {})}
    return await florin.http.post(florin.demo.psp_webhook_url(florin.api_url), content=body, headers=given)


async def charge(florin: Florin, **fields: Any) -> dict[str, Any]:
    response = await florin.post(order(confirm=True, token="tok_paid", **fields))
    assert response.status_code == 201, response.text
    payment: dict[str, Any] = response.json()
    return payment


async def balances(florin: Florin) -> dict[str, int]:
    return {wallet["kind"]: wallet["balance"] for wallet in await florin.wallets()}


async def test_a_refund_made_at_the_psp_posts_whatever_the_wallet_holds(florin: Florin) -> None:
    payment = await charge(florin)
    await florin.spend(1_990)
    await florin.control(refund_at_psp=await reference_of(florin, payment), amount_minor=500)

    async def posted() -> bool:
        return bool((await florin.read(payment["id"]))["refunded_amount"] == 500)

    await eventually(posted)
    assert await balances(florin) == {"available": -500}
    await florin.until_event("refund.succeeded", (await refunds(florin, payment))[0]["id"])
    (made,) = await refunds(florin, payment)
    assert (made["status"], made["amount"], made["reason"]) == ("SUCCEEDED", 500, "made at the payment provider")
    sent = (await florin.control(webhooks="repeat"))["webhooks_sent"]
    await eventually(lambda: has_sent(florin, sent + 1))
    assert await balances(florin) == {"available": -500}
    assert await florin.rows("SELECT 1 FROM findings") == []


async def has_sent(florin: Florin, count: int) -> bool:
    return bool((await florin.control())["webhooks_sent"] >= count)


async def refunds(florin: Florin, payment: dict[str, Any]) -> list[dict[str, Any]]:
    response = await florin.http.get(f"{florin.api_url}/v1/payments/{payment['id']}/refunds", headers=florin.headers)
    found: list[dict[str, Any]] = response.json()["data"]
    return found


async def test_a_refund_made_at_the_psp_may_be_reported_before_the_charge(florin: Florin) -> None:
    payment = await florin.create()
    await florin.control(webhooks="hold")
    await florin.pay(payment)
    await florin.control(refund_at_psp=await reference_of(florin, payment), amount_minor=500)
    await florin.control(webhooks="reverse")

    async def posted() -> bool:
        await florin.connection.execute("UPDATE psp_inbox SET due_at = now() WHERE state = 'WAITING'")
        return bool((await florin.row(payment["id"]))["refunded_minor"] == 500)

    await eventually(posted)
    assert await balances(florin) == {"available": 1_490}


async def test_lost_webhooks_are_read_from_the_psps_list(florin: Florin) -> None:
    """After an outage everything is read; refunds and disputes at any time."""
    await eventually(lambda: is_read(florin))  # a first reading that is still under way would be taken for the one that counts
    first, second = await florin.create(), await charge(florin, order_id="order-2")
    await florin.control(webhooks="lose")
    await florin.pay(first)
    await florin.control(refund_at_psp=await reference_of(florin, second), amount_minor=500)
    await florin.connection.execute(
        "UPDATE psp_states SET events_due_at = NULL, events_read_until = now() - interval '10 minutes'"
    )
    (adapter,) = florin.payments.psps.adapters
    await eventually(lambda: is_read(florin))
    assert (await florin.row(first["id"]))["status"] == "SUCCEEDED"
    assert (await florin.row(second["id"]))["refunded_minor"] == 500
    assert await read_list(florin.payments, adapter) == 0


async def is_read(florin: Florin) -> bool:
    rows = await florin.rows("SELECT 1 FROM psp_states WHERE events_read_until > now() - interval '1 minute'")
    return bool(rows)


async def test_an_event_of_an_unknown_type_is_answered(florin: Florin) -> None:
    body = msgspec.json.encode({"id": "sbe_1", "type": "balance.available", "data": {"anything": [1, 2]}})
    assert (await tell(florin, body)).status_code == 200
    assert await florin.rows("SELECT 1 FROM psp_inbox") == []


async def test_a_signed_event_that_cannot_be_read_is_a_dead_letter_after_five_times(florin: Florin) -> None:
    body = msgspec.json.encode({"id": "sbe_1", "type": "intent.captured", "data": {"card": "4242424242424242"}})
    statuses = [(await tell(florin, body)).status_code for _ in range(6)]
    assert statuses == [400, 400, 400, 400, 200, 200]
    (kept,) = await florin.rows("SELECT * FROM psp_inbox")
    assert (kept["merchant_id"], kept["state"], kept["notice"]) == (NOBODY, "DEAD", None)
    assert "4242" not in str(kept)


async def test_an_event_that_fails_five_times_alike_is_a_dead_letter_and_a_finding(florin: Florin) -> None:
    """A refund made at the PSP that differs from its event cannot be posted."""
    await eventually(lambda: is_read(florin))  # so that its list does not tell the truth meanwhile
    payment = await charge(florin)
    row = await florin.row(payment["id"])
    await florin.control(webhooks="lose", refund_at_psp=row["reference"], amount_minor=500)
    headers = {"authorization": f"Bearer {florin.demo.psp_api_key}"}
    (name,) = (await florin.http.get(f"{florin.psp_url}/v1/intents/{row['reference']}", headers=headers)).json()["refunds"]
    body = msgspec.json.encode({"id": "sbe_1", "type": "refund.updated", "data": an_intent(row, {name: (5_000, "succeeded")})})
    statuses = [(await tell(florin, body)).status_code for _ in range(6)]
    assert statuses == [409, 409, 409, 409, 200, 200]
    assert await balances(florin) == {"available": 1_990}
    (finding,) = await florin.rows("SELECT kind, detail FROM findings")
    assert finding["kind"] == "unmatched_event"
    assert f"50.00 EUR as {name}" in finding["detail"]


async def test_a_refund_made_at_the_psp_that_has_failed_meanwhile_is_never_posted(florin: Florin) -> None:
    payment = await charge(florin)
    row = await florin.row(payment["id"])
    await florin.control(webhooks="hold", refund_at_psp=row["reference"], amount_minor=500)
    headers = {"authorization": f"Bearer {florin.demo.psp_api_key}"}
    (name,) = (await florin.http.get(f"{florin.psp_url}/v1/intents/{row['reference']}", headers=headers)).json()["refunds"]
    await florin.control(end_refund=name, of=row["reference"], **{"as": "failed"})
    await florin.control(webhooks="reverse")

    async def told() -> bool:
        return len(await florin.rows("SELECT 1 FROM psp_events WHERE type = 'refund.updated'")) == 2

    await eventually(told)
    assert await balances(florin) == {"available": 1_990}
    assert await refunds(florin, payment) == []


def an_intent(row: dict[str, Any], refunds: dict[str, tuple[int, str]]) -> dict[str, Any]:
    return {
        "id": row["reference"],
        "status": "captured",
        "amount_minor": row["amount_minor"],
        "captured_minor": row["amount_minor"],
        "currency": row["currency"],
        "payment_url": row["payment_url"] or "",
        "merchant_id": str(row["merchant_id"]),
        "payment_id": str(row["id"]),
        "operation_id": str(row["operation_id"]),
        "refunds": {name: {"amount_minor": amount, "status": status} for name, (amount, status) in refunds.items()},
    }


async def test_a_parked_event_whose_payment_never_appears_ends_as_a_dead_letter(florin: Florin) -> None:
    payment = await charge(florin)
    row = {**await florin.row(payment["id"]), "id": uuid4()}
    body = msgspec.json.encode({"id": "sbe_1", "type": "intent.captured", "data": an_intent(row, {})})
    assert (await tell(florin, body)).status_code == 200

    async def dead() -> bool:
        await florin.connection.execute("UPDATE psp_inbox SET due_at = now() WHERE state = 'WAITING'")
        return bool(await florin.rows("SELECT 1 FROM psp_inbox WHERE state = 'DEAD'"))

    await eventually(dead)
    (finding,) = await eventually(lambda: florin.rows("SELECT detail FROM findings"))
    assert "19.90 EUR" in finding["detail"]
    await florin.connection.execute("DELETE FROM findings")


async def test_an_event_touches_only_its_own_accounts_payments(florin: Florin) -> None:
    payment = await florin.create()
    await florin.connection.execute("UPDATE payment_requests SET psp_account_id = gen_random_uuid()")
    await florin.connection.execute("UPDATE psp_operations SET psp_account_id = p.psp_account_id FROM payment_requests p")
    row = await florin.row(payment["id"])
    body = msgspec.json.encode({"id": "sbe_1", "type": "intent.captured", "data": an_intent(row, {})})
    assert (await tell(florin, body)).status_code == 200
    assert (await florin.row(payment["id"]))["status"] == "PENDING"
    assert [one["kind"] for one in await florin.rows("SELECT kind FROM findings")] == ["evidence_mismatch"]
    assert await balances(florin) == {}


async def test_a_rotating_secret_is_good_with_the_new_one_until_its_time_is_over(florin: Florin, directory: Any) -> None:
    account_id = PspAccountId(florin.demo.psp_account_id)
    sealer = Sealer.from_file(directory / "sealing.key")
    act = Act(id=uuid7(), merchant_id=NOBODY, actor="Ada", action="psp.rotate_secret", detail="", at=utc_now())
    sealed = sealer.seal("sandbox_whsec_new", table="psp_accounts.webhook_secret", row=account_id)
    await rotate_webhook_secret(florin.connection, account_id, act, sealed_secret=sealed, old_until=utc_now().replace(year=2100))
    await florin.payments.psps.reload()
    body = msgspec.json.encode({"id": "sbe_1", "type": "balance.available", "data": {}})
    assert (await tell(florin, body)).status_code == 200
    assert (await tell(florin, body, secret="sandbox_whsec_new")).status_code == 200
    await florin.connection.execute("UPDATE psp_accounts SET old_webhook_secret_until = now() - interval '1 second'")
    await florin.payments.psps.reload()
    assert (await tell(florin, body)).status_code == 400
    assert (await tell(florin, body, secret="sandbox_whsec_new")).status_code == 200


async def test_a_forged_webhook_costs_little(florin: Florin) -> None:
    """Under 100 µs of CPU time of this process for each."""
    url = florin.demo.psp_webhook_url(florin.api_url)
    (adapter,) = florin.payments.psps.adapters
    body = msgspec.json.encode({"id": "sbe_1", "type": "intent.captured", "data": {}})
    headers = {b"sandbox-signature": sign_timestamped("wrong", timestamp=int(time.time()), body=body).encode()}
    forged = {"sandbox-signature": headers[b"sandbox-signature"].decode()}
    response = await florin.http.post(url, content=body, headers=forged)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_signature")
    rows = await florin.rows("SELECT 1 FROM psp_inbox UNION ALL SELECT 1 FROM psp_events")
    assert rows == []

    def per_call(count: int) -> float:
        began = time.process_time()
        for _ in range(count):
            with pytest.raises(InvalidSignature):
                adapter.read_webhook(headers, body, now=time.time())
        return (time.process_time() - began) / count

    assert min(per_call(500) for _ in range(3)) < 100e-6


async def test_a_customer_confirms_a_token_with_the_bank(florin: Florin) -> None:
    response = await florin.post(order(confirm=True, token="tok_3ds", return_url="https://shop.example/back"))
    assert response.status_code == 202, response.text
    payment = response.json()
    assert payment["payment_url"]
    page = await florin.http.get(payment["payment_url"])
    assert "asks you to confirm this payment" in page.text
    await florin.http.post(payment["payment_url"], data={"confirm": "yes"})
    await florin.until_stored(payment["id"], "SUCCEEDED")
    refused = (await florin.post(order(order_id="order-2", confirm=True, token="tok_3ds"))).json()
    await florin.http.post(refused["payment_url"], data={"confirm": "no"})
    row = await florin.until_stored(refused["id"], "DECLINED")
    assert row["decline_code"] == "authentication_failed"


async def test_a_challenged_card_on_the_page_may_be_followed_by_another(florin: Florin) -> None:
    payment = await florin.create()
    asked = await florin.pay(payment, "4000 0000 0000 3220")
    assert "asks you to confirm this payment" in asked.text
    refused = await florin.http.post(payment["payment_url"], data={"confirm": "no"})
    assert (refused.status_code, "authentication failed" in refused.text) == (402, True)
    await florin.pay(payment)
    await florin.until_stored(payment["id"], "SUCCEEDED")


async def test_the_psps_list_names_our_payments(florin: Florin) -> None:
    paid = await charge(florin)
    await florin.create(order_id="order-2")
    (adapter,) = florin.payments.psps.adapters
    now = utc_now()
    seen = await adapter.list_window(since=now.replace(year=2000), until=now.replace(year=2100))
    assert len(seen) == 2
    row = await florin.row(paid["id"])
    (own,) = [one for one in seen if one.payment_id == row["id"]]
    assert (own.evidence.kind, own.evidence.money) == ("captured", Money(1_990, "EUR"))
    assert list(await adapter.list_window(since=now.replace(year=2000), until=now.replace(year=2001))) == []


def test_a_notice_survives_being_kept() -> None:
    ids = {name: str(UUID(int=number)) for number, name in enumerate(("merchant_id", "payment_id", "operation_id"), start=1)}
    intent = {
        "id": "int_1",
        "status": "authorized",
        "amount_minor": 5,
        "currency": "EUR",
        "payment_url": "",
        **ids,
        "capture_before": 9,
    }
    event = Event(id="e", type="intent.authorized", data=msgspec.Raw(msgspec.json.encode(intent)))
    notice = notice_of(event, PspAccountId(UUID(int=9)))
    assert msgspec.json.decode(msgspec.json.encode(notice), type=Notice) == notice
