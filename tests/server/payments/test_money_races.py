"""Races of refunds, releases, disputes and operations: each test was a defect that an attack had found."""

import base64
from datetime import timedelta
from typing import Any

import httpx2
import msgspec
import pytest

from core.ids import REFUND, decode_id
from core.signing import sign_timestamped
from server.clock import utc_now
from server.db.payments import payments
from tests.support.florin import Florin, eventually
from tests.support.payments import act, balances, charge, get, reference_of, set_merchant, until_chained


async def tell_dispute(florin: Florin, payment: dict[str, Any], end: str, dispute: dict[str, Any]) -> httpx2.Response:
    """Send a signed event about a dispute, once."""
    row = await florin.row(payment["id"])
    intent = {
        "id": row["reference"],
        "status": "captured",
        "amount_minor": row["amount_minor"],
        "captured_minor": row["captured_minor"],
        "currency": "EUR",
        "payment_url": "",
        "merchant_id": row["merchant_id"],
        "payment_id": row["id"],
        "operation_id": row["operation_id"],
        "dispute": {"id": "dis_1", **dispute},
    }
    body = msgspec.json.encode({"id": f"sbe_{utc_now().timestamp()}", "type": f"dispute.{end}", "data": intent})
    signature = sign_timestamped(florin.demo.psp_webhook_secret, timestamp=int(utc_now().timestamp()), body=body)
    url = florin.demo.psp_webhook_url(florin.api_url)
    return await florin.http.post(url, content=body, headers={"sandbox-signature": signature})


async def make_due(florin: Florin, payment: dict[str, Any] | None = None) -> None:
    where = f"WHERE id = '{(await florin.row(payment['id']))['id']}'" if payment else ""
    await florin.connection.execute(f"UPDATE payment_requests SET due_at = now() {where}")


async def test_a_retry_that_is_refused_does_not_undo_a_refund_that_was_made(florin: Florin) -> None:
    payment = await charge(florin)
    await florin.control(refund="lose", webhooks="hold")
    assert (await act(florin, payment, "refunds", key="k", amount=500)).status_code == 504
    await florin.control(refund="refuse")
    again = await act(florin, payment, "refunds", key="k", amount=500)
    assert (again.status_code, again.json()["status"]) == (201, "SUCCEEDED")
    assert await balances(florin) == {"available": 1_490}


async def test_a_refund_is_never_sent_again_once_the_psp_may_have_forgotten_its_key(florin: Florin) -> None:
    payment = await charge(florin)
    await florin.control(refund="drop")
    assert (await act(florin, payment, "refunds", key="k", amount=500)).status_code == 504
    await florin.connection.execute("UPDATE refunds SET created_at = created_at - interval '2 days'")
    await florin.control(refund="answer")
    again = await act(florin, payment, "refunds", key="k", amount=500)
    assert (again.status_code, again.json()["code"]) == (504, "psp_timeout")
    assert (await florin.rows("SELECT status FROM refunds")) == [{"status": "UNKNOWN"}]


@pytest.mark.parametrize("amount", [2_500, 0, -5, 10**18])
async def test_a_dispute_that_does_not_fit_moves_nothing(florin: Florin, amount: int) -> None:
    payment = await charge(florin)
    for _ in range(3):
        assert (await tell_dispute(florin, payment, "opened", {"amount_minor": amount})).status_code == 200
    assert await balances(florin) == {"available": 1_990}
    assert [row["kind"] for row in await florin.rows("SELECT kind FROM findings")] == ["evidence_mismatch"]
    assert await florin.rows("SELECT 1 FROM events WHERE type LIKE 'payment.dispute%'") == []


async def test_a_dispute_reported_too_early_waits(florin: Florin) -> None:
    payment = await florin.create()
    dispute = {"amount_minor": 1_000}
    assert (await tell_dispute(florin, payment, "won", dispute)).status_code == 200
    assert (await tell_dispute(florin, payment, "opened", dispute)).status_code == 200
    await florin.pay(payment)
    await florin.until_stored(payment["id"], "SUCCEEDED")
    assert await balances(florin) == {"available": 1_990}

    async def told(event_type: str) -> bool:
        await florin.connection.execute("UPDATE psp_inbox SET due_at = now() WHERE state = 'WAITING'")
        return bool(await florin.rows("SELECT 1 FROM events WHERE type = $1", event_type))

    await eventually(lambda: told("payment.dispute_won"))
    assert await balances(florin) == {"available": 1_990}
    kinds = [row["type"] for row in await florin.rows("SELECT type FROM events ORDER BY seq")]
    assert kinds == ["payment.succeeded", "payment.disputed", "payment.dispute_won"]
    assert await florin.rows("SELECT 1 FROM psp_inbox WHERE state <> 'DONE'") == []


async def test_a_refund_that_fails_after_the_release_is_available_again(florin: Florin) -> None:
    await set_merchant(florin, settlement_delay_seconds=3_600)
    await florin.control(refunds_end_as="pending")
    payment = await charge(florin)
    made = (await act(florin, payment, "refunds", amount=990)).json()
    await make_due(florin)
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests WHERE release_at IS NULL"))
    refund_id = str(decode_id(REFUND, made["id"]))
    await florin.control(end_refund=refund_id, of=await reference_of(florin, payment), **{"as": "failed"})
    await florin.until_event("refund.failed", made["id"])
    assert await balances(florin) == {"available": 1_990, "pending": 0}


async def test_a_release_takes_no_other_payments_money(florin: Florin) -> None:
    await set_merchant(florin, settlement_delay_seconds=3_600)
    first, second = [await charge(florin) for _ in range(2)]
    assert (await act(florin, first, "refunds")).status_code == 201
    await make_due(florin, first)
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests WHERE release_at IS NULL"))
    assert await balances(florin) == {"pending": 1_990}
    await make_due(florin, second)
    await eventually(lambda: florin.rows("SELECT 1 FROM wallets WHERE balance_minor = 1990 AND kind = 'merchant_available'"))


async def test_a_failed_refund_brings_no_other_payments_money_back_into_pending(florin: Florin) -> None:
    await florin.connection.execute(
        """
        INSERT INTO merchant_currencies (merchant_id, currency, fee_basis_points, fee_fixed_minor)
        SELECT merchant_id, 'EUR', 290, 30 FROM merchants
        """
    )
    await set_merchant(florin, settlement_delay_seconds=3_600)
    first, second = [await charge(florin) for _ in range(2)]
    made = (await act(florin, first, "refunds")).json()
    await make_due(florin, second)
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests WHERE release_at IS NULL"))
    refund_id = str(decode_id(REFUND, made["id"]))
    await florin.control(end_refund=refund_id, of=await reference_of(florin, first), **{"as": "failed"})
    await florin.until_event("refund.failed", made["id"])
    await make_due(florin, first)
    await eventually(lambda: florin.rows("SELECT 1 FROM wallets WHERE balance_minor = 0 AND kind = 'merchant_pending'"))
    assert (await balances(florin))["available"] == 2 * 1_902


async def test_a_fee_share_never_exceeds_its_refund(florin: Florin) -> None:
    await florin.connection.execute(
        """
        INSERT INTO merchant_currencies (merchant_id, currency, fee_basis_points) SELECT merchant_id, 'EUR', 5000 FROM merchants
        """
    )
    await set_merchant(florin, refunds_fee=True)
    payment = await charge(florin, amount=100)
    for _ in range(2):
        made = [(await act(florin, payment, "refunds", amount=1)).json() for _ in range(6)]
        for one in made[1::2]:
            refund_id = str(decode_id(REFUND, one["id"]))
            await florin.control(end_refund=refund_id, of=await reference_of(florin, payment), **{"as": "failed"})
            await florin.until_event("refund.failed", one["id"])
    assert (await act(florin, payment, "refunds", amount=1)).status_code == 201


async def test_a_refund_that_the_psp_has_is_not_unknown_because_an_answer_was_lost(florin: Florin) -> None:
    await florin.control(refunds_end_as="pending")
    payment = await charge(florin)
    await florin.control(refund="hang")
    lost = await act(florin, payment, "refunds", key="k", amount=5)
    assert (lost.status_code, lost.json()["refund"]["status"]) == (504, "PENDING")
    refund_id = str(decode_id(REFUND, lost.json()["refund"]["id"]))
    await florin.control(refund="answer", end_refund=refund_id, of=await reference_of(florin, payment), **{"as": "succeeded"})
    await florin.until_event("refund.succeeded", lost.json()["refund"]["id"])
    again = await act(florin, payment, "refunds", key="k", amount=5)
    assert (again.status_code, again.json()["status"]) == (201, "SUCCEEDED")


async def test_a_line_of_a_statement_has_one_balance_whatever_the_period(florin: Florin) -> None:
    made = [await charge(florin, amount=amount) for amount in (100, 20, 3)]
    await florin.connection.execute("ALTER TABLE ledger_entries DISABLE TRIGGER ledger_entries_append_only")
    await florin.connection.execute(
        "UPDATE ledger_entries SET created_at = now() - interval '10 minutes' WHERE payment_id = $1",
        ((await florin.row(made[1]["id"]))["id"],),
    )
    await florin.connection.execute("ALTER TABLE ledger_entries ENABLE TRIGGER ledger_entries_append_only")
    start = (utc_now() - timedelta(minutes=1)).isoformat()
    lines = [msgspec.json.decode(line) for line in (await get(florin, "statement", **{"from": start})).text.splitlines()]
    assert [(line["amount"], line["balance"]) for line in lines] == [(100, 100), (3, 123)]
    await florin.connection.execute("ALTER TABLE ledger_chain DISABLE TRIGGER ledger_chain_append_only")
    await florin.connection.execute("DELETE FROM ledger_chain")
    await florin.connection.execute("ALTER TABLE ledger_chain ENABLE TRIGGER ledger_chain_append_only")


async def test_fee_shares_add_up_after_a_refund_has_failed(florin: Florin) -> None:
    await florin.connection.execute(
        """
        INSERT INTO merchant_currencies (merchant_id, currency, fee_basis_points, fee_fixed_minor)
        SELECT merchant_id, 'EUR', 290, 30 FROM merchants
        """
    )
    await set_merchant(florin, refunds_fee=True)
    payment = await charge(florin)
    first = (await act(florin, payment, "refunds", amount=700)).json()
    await act(florin, payment, "refunds", amount=700)
    refund_id = str(decode_id(REFUND, first["id"]))
    await florin.control(end_refund=refund_id, of=await reference_of(florin, payment), **{"as": "failed"})
    await florin.until_event("refund.failed", first["id"])
    for amount in (700, 590):
        assert (await act(florin, payment, "refunds", amount=amount)).status_code == 201
    assert await balances(florin) == {"available": 0}


async def test_late_money_that_cannot_be_given_back_is_for_a_person_once(florin: Florin) -> None:
    await florin.connection.execute(
        """
        INSERT INTO merchant_currencies (merchant_id, currency, fee_basis_points) SELECT merchant_id, 'EUR', 500 FROM merchants
        """
    )
    await set_merchant(florin, refunds_late=True)
    payment = await florin.create()
    reference = await reference_of(florin, payment)
    await act(florin, payment, "cancel")
    await florin.control(capture_late=reference)
    await eventually(lambda: florin.rows("SELECT 1 FROM findings WHERE kind = 'late_refund_failed'"))
    row = await florin.row(payment["id"])
    assert (row["status"], row["is_given_back"], row["due_at"]) == ("SUCCEEDED", True, None)
    assert len(await florin.rows("SELECT 1 FROM findings")) == 1


async def test_a_late_refund_that_fails_is_for_a_person_and_the_money_is_released(florin: Florin) -> None:
    await set_merchant(florin, refunds_late=True, settlement_delay_seconds=3_600)
    await florin.control(refunds_end_as="failed")
    payment = await florin.create()
    reference = await reference_of(florin, payment)
    await act(florin, payment, "cancel")
    await florin.control(capture_late=reference)
    await eventually(lambda: florin.rows("SELECT 1 FROM findings WHERE kind = 'late_refund_failed'"))
    row = await florin.row(payment["id"])
    assert row["due_at"] == row["release_at"] is not None
    await make_due(florin)
    await eventually(lambda: florin.rows("SELECT 1 FROM wallets WHERE balance_minor = 1990 AND kind = 'merchant_available'"))


async def test_a_refund_that_the_psp_has_is_looked_at_less_and_less(florin: Florin) -> None:
    await florin.control(refunds_end_as="pending")
    payment = await charge(florin)
    await act(florin, payment, "refunds", amount=1)
    await florin.connection.execute("UPDATE refunds SET due_at = now(), created_at = created_at - interval '1 hour'")
    await eventually(lambda: florin.rows("SELECT 1 FROM refunds WHERE due_at > now() + interval '50 minutes'"))


async def test_a_key_never_stores_the_effect_of_another(florin: Florin) -> None:
    payment = await charge(florin, capture="manual")
    await florin.control(capture="drop")
    assert (await act(florin, payment, "capture", key="a", amount=500)).status_code == 504
    assert (await act(florin, payment, "capture", key="b", amount=700)).status_code == 409
    await florin.control(capture="answer")
    for _ in range(2):
        assert (await act(florin, payment, "capture", key="b", amount=700)).status_code == 409
    assert (await act(florin, payment, "capture", key="a", amount=500)).json()["captured_amount"] == 500


async def test_a_cancel_that_meets_the_money_is_refused_every_time(florin: Florin) -> None:
    payment = await charge(florin, capture="manual")
    await florin.control(webhooks="hold", capture_late=await reference_of(florin, payment))
    for _ in range(2):
        refused = await act(florin, payment, "cancel", key="k")
        assert (refused.status_code, refused.json()["code"]) == (409, "not_cancelable")


async def test_a_suspended_payment_that_succeeds_is_released(florin: Florin) -> None:
    await set_merchant(florin, settlement_delay_seconds=3_600)
    payment = await charge(florin)
    await florin.connection.execute("UPDATE payment_requests SET suspended = true")
    await act(florin, payment, "refunds", amount=10)
    row = await florin.row(payment["id"])
    assert row["due_at"] == row["release_at"] is not None
    await florin.connection.execute("UPDATE payment_requests SET suspended = false")


async def test_a_page_that_was_promised_is_opened_by_the_follow_up(florin: Florin) -> None:
    await florin.control(create="drop")
    reply = await florin.post({"amount": 5, "currency": "EUR", "order_id": "1"}, key="k", headers={"prefer": "wait=5"})
    payment_id = (reply.json().get("payment") or reply.json())["id"]
    # as if the worker had died before the call: PENDING, without reference
    await florin.connection.execute("ALTER TABLE payment_logs DISABLE TRIGGER payment_logs_append_only")
    await florin.connection.execute("DELETE FROM payment_logs WHERE version > 1")
    await florin.connection.execute("ALTER TABLE payment_logs ENABLE TRIGGER payment_logs_append_only")
    await florin.control(create="answer")
    await florin.connection.execute("UPDATE payment_requests SET status = 'PENDING', version = 1, due_at = now()")

    async def opened() -> bool:
        return (await florin.row(payment_id))["payment_url"] is not None

    assert await eventually(opened)


async def test_a_stopped_merchant_still_gets_its_old_replies(florin: Florin) -> None:
    body = {"amount": 5, "currency": "EUR", "order_id": "1"}
    first = await florin.post(body, key="k")
    await set_merchant(florin, accepts_payments=False)
    again = await florin.post(body, key="k")
    assert (again.status_code, again.content) == (201, first.content)
    assert (await florin.post(body)).status_code == 403


async def test_a_receipt_is_complete_or_not_ready(florin: Florin) -> None:
    payment = await charge(florin)
    await until_chained(florin)
    for number in range(1, 4):
        await act(florin, payment, "refunds", amount=1)
        reply = await get(florin, f"payments/{payment['id']}/receipt")
        assert reply.status_code in (200, 409)
        if reply.status_code == 409:
            assert (reply.json()["code"], reply.headers["retry-after"]) == ("receipt_not_ready", "1")
        await until_chained(florin)
        body = (await get(florin, f"payments/{payment['id']}/receipt")).text.split(".")[1]

        said = msgspec.json.decode(base64.urlsafe_b64decode(body + "=="))
        refunded = -sum(entry["amount_minor"] for entry in said["entries"] if entry["account"] == "merchant_available") + 1_990
        assert said["payment"]["refunded_amount"] == refunded == number


async def test_pages_of_a_status_that_is_rare_are_bounded(florin: Florin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page scans a bounded number of payments; it may be empty and have a next one."""
    monkeypatch.setattr(payments, "SCAN_MAX", 2)
    rare = await charge(florin)
    for _ in range(5):
        await florin.create()
    found: list[str] = []
    query: dict[str, Any] = {"status": "SUCCEEDED"}
    pages = 0
    while True:
        page = (await get(florin, "payments", **query)).json()
        found += [one["id"] for one in page["data"]]
        pages += 1
        if not page["has_more"]:
            break
        query["cursor"] = page["next_cursor"]
    assert (found, pages) == ([rare["id"]], 4)
