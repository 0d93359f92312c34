"""Refunds, fees, disputes and late money over real HTTP."""

from typing import Any

import pytest

from core.ids import REFUND, decode_id
from tests.support.florin import Florin, eventually
from tests.support.payments import act, balances, charge, set_merchant


@pytest.mark.any_postgres
async def test_refunds_in_full_and_in_parts(florin: Florin) -> None:
    payment = await charge(florin)
    first = await act(florin, payment, "refunds", key="k", amount=500, reason="one cup broke")
    again = await act(florin, payment, "refunds", key="k", amount=500, reason="one cup broke")
    assert first.status_code == 201, first.text
    assert (first.json()["status"], first.json()["amount"]) == ("SUCCEEDED", 500)
    assert again.content == first.content
    too_much = await act(florin, payment, "refunds", amount=1_491)
    assert (too_much.status_code, too_much.json()["code"]) == (409, "refund_too_large")
    rest = await act(florin, payment, "refunds")
    assert rest.json()["amount"] == 1_490
    assert (await act(florin, payment, "refunds")).status_code == 409

    assert (await florin.read(payment["id"]))["refunded_amount"] == 1_990
    assert await balances(florin) == {"available": 0}
    listed = await florin.http.get(f"{florin.api_url}/v1/payments/{payment['id']}/refunds", headers=florin.headers)
    assert [refund["amount"] for refund in listed.json()["data"]] == [500, 1_490]
    await florin.until_event("refund.succeeded", first.json()["id"])


async def test_a_refund_that_was_lost_is_found_out_and_not_made_twice(florin: Florin) -> None:
    payment = await charge(florin)
    await florin.control(refund="lose", webhooks="hold")
    lost = await act(florin, payment, "refunds", key="k", amount=500)
    assert (lost.status_code, lost.json()["code"], lost.json()["refund"]["status"]) == (504, "psp_timeout", "UNKNOWN")
    assert await balances(florin) == {"available": 1_490}, "the wallet has paid already"
    await florin.control(refund="answer")
    again = await act(florin, payment, "refunds", key="k", amount=500)
    assert (again.status_code, again.json()["status"]) == (201, "SUCCEEDED")
    assert again.json()["id"] == lost.json()["refund"]["id"]
    assert await balances(florin) == {"available": 1_490}


@pytest.mark.parametrize("fault", ["lose", "drop"])
async def test_a_refund_whose_request_died_is_finished_by_the_follow_up(florin: Florin, fault: str) -> None:
    payment = await charge(florin)
    await florin.control(refund=fault, webhooks="hold")
    await act(florin, payment, "refunds", amount=500)
    await florin.control(refund="answer")
    await florin.connection.execute(  # unless the follow-up job was faster
        "UPDATE refunds SET due_at = now(), created_at = created_at - interval '2 minutes' WHERE due_at IS NOT NULL"
    )
    await eventually(lambda: florin.rows("SELECT 1 FROM refunds WHERE status = 'SUCCEEDED'"))
    assert len(await florin.rows("SELECT 1 FROM refunds")) == 1


async def test_a_refund_may_fail_after_it_had_succeeded(florin: Florin) -> None:
    payment = await charge(florin)
    made = (await act(florin, payment, "refunds", amount=500)).json()
    reference = (await florin.row(payment["id"]))["reference"]
    refund_id = str(decode_id(REFUND, made["id"]))
    for _ in range(2):
        await florin.control(end_refund=refund_id, of=reference, **{"as": "failed"})
    await florin.until_event("refund.failed", made["id"])
    assert await balances(florin) == {"available": 1_990}
    assert (await florin.read(payment["id"]))["refunded_amount"] == 0
    await florin.control(end_refund=refund_id, of=reference, **{"as": "succeeded"})
    await eventually(lambda: florin.rows("SELECT 1 FROM psp_events WHERE outcome = 'nothing_new'"))
    assert await balances(florin) == {"available": 1_990}


async def test_a_refund_that_the_psp_takes_its_time_for(florin: Florin) -> None:
    await florin.control(refunds_end_as="pending")
    payment = await charge(florin)
    made = (await act(florin, payment, "refunds", amount=500)).json()
    assert made["status"] == "PENDING"
    reference = (await florin.row(payment["id"]))["reference"]
    await florin.control(end_refund=str(decode_id(REFUND, made["id"])), of=reference, **{"as": "succeeded"})
    await florin.until_event("refund.succeeded", made["id"])


async def test_a_refund_needs_money_in_the_wallet(florin: Florin) -> None:
    payment = await charge(florin)
    await florin.spend(1_000)
    short = await act(florin, payment, "refunds", key="k")
    assert (short.status_code, short.json()["code"]) == (409, "insufficient_balance")
    await florin.connection.execute(
        """
        INSERT INTO merchant_currencies (merchant_id, currency, negative_limit_minor)
        SELECT merchant_id, 'EUR', 1000 FROM merchants
        """
    )
    allowed = await act(florin, payment, "refunds", key="k")
    assert allowed.status_code == 201, allowed.text
    assert await balances(florin) == {"available": -1_000}


async def test_fees_and_their_return(florin: Florin) -> None:
    await florin.connection.execute(
        """
        INSERT INTO merchant_currencies (merchant_id, currency, fee_basis_points, fee_fixed_minor)
        SELECT merchant_id, 'EUR', 290, 30 FROM merchants
        """
    )
    await set_merchant(florin, refunds_fee=True)
    payment = await charge(florin)
    assert payment["fee_amount"] == 88, "2.9 % of 19.90 is 57.71, rounded 58, and 30"
    assert await balances(florin) == {"available": 1_902}
    for amount in (700, 700, 590):
        assert (await act(florin, payment, "refunds", amount=amount)).status_code == 201
    assert await balances(florin) == {"available": 0}
    fees = await florin.rows("SELECT sum(amount_minor)::bigint AS fees FROM ledger_entries WHERE account = 'platform_fees'")
    assert fees == [{"fees": 0}]


async def test_money_is_pending_until_it_is_released(florin: Florin) -> None:
    await set_merchant(florin, settlement_delay_seconds=3_600)
    payments = [await charge(florin) for _ in range(2)]
    assert await balances(florin) == {"pending": 3_980}
    assert (await act(florin, payments[0], "refunds", amount=990)).status_code == 201
    assert await balances(florin) == {"available": 0, "pending": 2_990} or await balances(florin) == {"pending": 2_990}
    await florin.connection.execute("UPDATE payment_requests SET due_at = now()")

    async def released() -> bool:
        return (await balances(florin)).get("available") == 2_990

    assert await eventually(released)
    assert (await balances(florin))["pending"] == 0


async def test_late_money_is_given_back_where_the_merchant_wants_it(florin: Florin) -> None:
    await set_merchant(florin, refunds_late=True)
    payment = await florin.create()
    row = await florin.row(payment["id"])
    canceled = await act(florin, payment, "cancel")
    assert canceled.json()["status"] == "CANCELED"
    await florin.control(capture_late=row["reference"])
    await eventually(lambda: florin.rows("SELECT 1 FROM refunds WHERE reason = 'paid too late' AND status = 'SUCCEEDED'"))
    read = await florin.read(payment["id"])
    assert (read["status"], read["late"], read["refunded_amount"]) == ("SUCCEEDED", True, 1_990)
    assert await balances(florin) == {"available": 0}


@pytest.mark.any_postgres
async def test_disputes_take_the_money_and_give_it_back(florin: Florin) -> None:
    payment = await charge(florin)
    reference = (await florin.row(payment["id"]))["reference"]
    dispute: dict[str, Any] = {"dispute": reference, "amount_minor": 1_000}
    for _ in range(2):
        await florin.control(**dispute, **{"as": "opened"})
    await florin.until_told(payment["id"], "payment.disputed")
    assert await balances(florin) == {"available": 990}
    assert [row["kind"] for row in await florin.rows("SELECT kind FROM findings")] == ["dispute"]
    assert (await act(florin, payment, "refunds", amount=991)).json()["code"] == "refund_too_large"
    for _ in range(2):
        await florin.control(**dispute, **{"as": "won"})
    await florin.until_told(payment["id"], "payment.dispute_won")
    assert await balances(florin) == {"available": 1_990}


async def test_a_lost_dispute_is_gone(florin: Florin) -> None:
    payment = await charge(florin)
    reference = (await florin.row(payment["id"]))["reference"]
    for end in ("opened", "lost"):
        await florin.control(dispute=reference, amount_minor=1_990, **{"as": end})
        await florin.until_told(payment["id"], {"opened": "payment.disputed", "lost": "payment.dispute_lost"}[end])
    assert await balances(florin) == {"available": 0}
    assert (await florin.read(payment["id"]))["disputed_amount"] == 1_990
