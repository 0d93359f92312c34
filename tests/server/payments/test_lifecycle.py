"""Authorize, capture, void, refund, dispute: the whole life of a payment over real HTTP."""

from typing import Any
from uuid import UUID

import pytest
import trio

from core.ids import REFUND, decode_id
from server.jobs import prune
from tests.support.florin import PAID, REFUSED, Florin, eventually, order
from tests.support.payments import act, balances, charge, set_merchant


async def test_a_token_is_charged_at_once(florin: Florin) -> None:
    payment = await charge(florin)
    assert (payment["status"], payment["success"], payment["captured_amount"]) == ("SUCCEEDED", 1, 1_990)
    await florin.until_told(payment["id"], "payment.succeeded")
    assert await balances(florin) == {"available": 1_990}


@pytest.mark.parametrize(("token", "code"), [("tok_declined", "card_declined"), ("tok_insufficient_funds", "insufficient_funds")])
async def test_a_declined_token_is_looked_at_again_before_it_is_answered(florin: Florin, token: str, code: str) -> None:
    response = await florin.post(order(confirm=True, token=token), key="k")
    again = await florin.post(order(confirm=True, token=token), key="k")
    assert response.status_code == again.status_code == 402
    problem = response.json()
    assert (problem["code"], problem["decline_code"], problem["payment"]["status"]) == ("declined", code, "DECLINED")
    assert problem["payment"]["did_check_again"] is True
    await florin.until_told(problem["payment"]["id"], "payment.declined")
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 1


@pytest.mark.any_postgres
async def test_an_authorization_is_captured_in_part_and_the_rest_released(florin: Florin) -> None:
    payment = await charge(florin, capture="manual")
    assert (payment["status"], payment["captured_amount"]) == ("AUTHORIZED", 0)
    assert payment["capture_before"] is not None
    assert await balances(florin) == {}

    too_much = await act(florin, payment, "capture", amount=1_991)
    assert (too_much.status_code, too_much.json()["code"]) == (422, "invalid_amount")
    captured = await act(florin, payment, "capture", key="k", amount=1_000)
    again = await act(florin, payment, "capture", key="k", amount=1_000)
    other = await act(florin, payment, "capture", amount=990)

    assert captured.status_code == 200, captured.text
    assert (captured.json()["status"], captured.json()["captured_amount"]) == ("SUCCEEDED", 1_000)
    assert again.content == captured.content
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (409, "not_capturable")
    assert await balances(florin) == {"available": 1_000}
    states = await florin.rows("SELECT kind, state, amount_minor FROM psp_operations ORDER BY kind")
    assert [tuple(row.values()) for row in states] == [("capture", "DONE", 1_000), ("charge", "DONE", 1_990)]


async def test_an_authorization_on_a_hosted_page(florin: Florin) -> None:
    payment = await florin.create(capture="manual")
    await florin.pay(payment, PAID)
    await florin.until_told(payment["id"], "payment.authorized")
    captured = await act(florin, payment, "capture")
    assert captured.json()["captured_amount"] == 1_990


async def test_an_authorization_is_voided(florin: Florin) -> None:
    payment = await charge(florin, capture="manual")
    canceled = await act(florin, payment, "cancel", key="k")
    again = await act(florin, payment, "cancel", key="k")
    another = await act(florin, payment, "cancel")
    assert canceled.status_code == again.status_code == another.status_code == 200, canceled.text
    assert canceled.json()["status"] == "CANCELED"
    assert (await act(florin, payment, "capture")).json()["code"] == "not_capturable"
    await florin.until_told(payment["id"], "payment.canceled")


async def test_a_page_is_closed_before_its_payment_is_canceled(florin: Florin) -> None:
    payment = await florin.create()
    canceled = await act(florin, payment, "cancel")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "CANCELED")
    assert "can no longer be made" in (await florin.http.get(payment["payment_url"])).text
    paid = await charge(florin)
    refused = await act(florin, paid, "cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_cancelable")
    assert "refund" in refused.json()["detail"]


async def test_the_customer_may_be_faster_than_the_cancel(florin: Florin) -> None:
    await florin.control(webhooks="hold")
    payment = await florin.create()
    await florin.pay(payment)
    refused = await act(florin, payment, "cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_cancelable")
    assert (await florin.read(payment["id"]))["status"] == "SUCCEEDED"


@pytest.mark.parametrize("verb", ["capture", "void"])
@pytest.mark.parametrize("fault", ["lose", "drop"])
async def test_an_operation_whose_answer_was_lost_is_found_out(florin: Florin, verb: str, fault: str) -> None:
    payment = await charge(florin, capture="manual")
    await florin.control(**{verb: fault}, webhooks="hold")
    path = "cancel" if verb == "void" else verb
    lost = await act(florin, payment, path, key="k")
    assert (lost.status_code, lost.json()["code"]) == (504, "psp_timeout")
    assert lost.json()["payment"]["pending_operation"] == verb
    other = await act(florin, payment, "capture")
    if other.status_code != 200 or verb == "void":  # else the follow-up was faster
        assert (other.status_code, other.json()["code"]) == (409, "not_capturable")
    await florin.control(**{verb: "answer"})

    again = await act(florin, payment, path, key="k")

    assert again.status_code == 200, again.text
    assert again.json()["status"] == ("CANCELED" if verb == "void" else "SUCCEEDED")
    assert len(await florin.rows("SELECT 1 FROM psp_operations WHERE kind = $1", verb)) == 1


@pytest.mark.parametrize("fault", ["lose", "drop"])
async def test_an_operation_whose_request_died_is_finished_by_the_follow_up(florin: Florin, fault: str) -> None:
    payment = await charge(florin, capture="manual")
    await florin.control(capture=fault, webhooks="hold")
    await act(florin, payment, "capture", amount=500)
    await florin.control(capture="answer")
    await florin.connection.execute("UPDATE payment_requests SET due_at = now()")
    await florin.until_stored(payment["id"], "SUCCEEDED")
    assert await balances(florin) == {"available": 500}


async def test_a_refused_capture_leaves_the_authorization(florin: Florin) -> None:
    payment = await charge(florin, capture="manual")
    await florin.control(capture="refuse")
    refused = await act(florin, payment, "capture", key="k")
    assert (refused.status_code, refused.json()["code"]) == (502, "psp_rejected")
    await florin.control(capture="answer")
    assert (await act(florin, payment, "capture", key="k")).json()["status"] == "SUCCEEDED"


async def test_an_authorization_ends_on_the_psps_word_after_a_warning(florin: Florin) -> None:
    payment = await charge(florin, capture="manual")
    await florin.connection.execute("UPDATE payment_requests SET due_at = now(), capture_before = now() + interval '1 hour'")
    await florin.until_told(payment["id"], "payment.authorization_expiring")
    row = await florin.row(payment["id"])
    assert row["status"] == "AUTHORIZED"
    assert row["due_at"] == row["capture_before"]
    await florin.control(expire=row["reference"])
    await florin.until_told(payment["id"], "payment.expired")


async def test_money_that_is_authorized_too_late_is_released(florin: Florin) -> None:
    """The PSP closed the page and yet authorizes: our books say EXPIRED, so the authorization is voided."""
    await florin.control(webhooks="hold")
    payment = await florin.create(capture="manual")
    await florin.pay(payment)
    await florin.connection.execute("UPDATE payment_requests SET status = 'EXPIRED', due_at = NULL")
    await florin.connection.execute("ALTER TABLE payment_logs DISABLE TRIGGER payment_logs_append_only")
    await florin.connection.execute("UPDATE payment_logs SET to_status = 'EXPIRED' WHERE version = 2")
    await florin.connection.execute("ALTER TABLE payment_logs ENABLE TRIGGER payment_logs_append_only")
    await florin.connection.execute(
        """
        INSERT INTO merchant_sequences (merchant_id, last_seq) SELECT merchant_id, 1 FROM merchants
        """
    )
    await florin.connection.execute(
        """
        INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
        SELECT merchant_id, 1, gen_random_uuid(), 'payment.expired', id, '{}', now() - interval '1 day' FROM payment_requests
        """
    )
    await florin.connection.execute("UPDATE webhook_endpoints SET created_at = now()")
    await florin.control(webhooks="release")

    async def voided() -> bool:
        rows = await florin.rows("SELECT state FROM psp_operations WHERE kind = 'void'")
        return [row["state"] for row in rows] == ["DONE"]

    assert await eventually(voided)
    assert "can no longer be made" in (await florin.http.get(payment["payment_url"])).text
    assert (await florin.row(payment["id"]))["pending_id"] is None


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
    await florin.connection.execute(  # unless the follow-up was faster
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


@pytest.mark.any_postgres
async def test_one_live_payment_per_order(florin: Florin) -> None:
    await set_merchant(florin, one_live_payment_per_order=True)
    replies = []

    async def ask() -> None:
        replies.append(await florin.post(order(order_id="one")))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    codes = sorted(reply.status_code for reply in replies)
    assert codes == [201] + [409] * 19
    assert {reply.json().get("code") for reply in replies if reply.status_code == 409} == {"order_has_live_payment"}
    live = next(reply.json() for reply in replies if reply.status_code == 201)
    assert (await act(florin, live, "cancel")).status_code == 200
    assert (await florin.post(order(order_id="one"))).status_code == 201


async def test_a_stopped_merchant_takes_no_payments_and_still_refunds(florin: Florin) -> None:
    payment = await charge(florin)
    await set_merchant(florin, accepts_payments=False)
    stopped = await florin.post(order())
    assert (stopped.status_code, stopped.json()["code"]) == (403, "payments_stopped")
    assert (await act(florin, payment, "refunds")).status_code == 201


async def test_metadata_descriptor_and_filters(florin: Florin) -> None:
    await set_merchant(florin, statement_descriptor="FLORIN*DEMO")
    payment = await charge(florin, order_id="a", metadata={"table": "7", "waiter": "Ümit"})
    assert payment["metadata"] == {"table": "7", "waiter": "Ümit"}
    assert payment["statement_descriptor"] == "FLORIN*DEMO"
    assert (await florin.read(payment["id"]))["metadata"] == payment["metadata"]
    await florin.create(order_id="b")
    for _ in range(3):
        await florin.create(order_id="c")

    async def listed(**query: Any) -> dict[str, Any]:
        response = await florin.http.get(f"{florin.api_url}/v1/payments", params=query, headers=florin.headers)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    assert [one["order_id"] for one in (await listed())["data"]] == ["c", "c", "c", "b", "a"]
    assert [one["order_id"] for one in (await listed(status="SUCCEEDED"))["data"]] == ["a"]
    assert len((await listed(order_id="c", status="PENDING"))["data"]) == 3
    assert (await listed(created_before=payment["created_at"]))["data"] == []
    assert len((await listed(created_from=payment["created_at"]))["data"]) == 5
    pages, cursor = [], None
    while True:
        page = await listed(limit=2, **({"cursor": cursor} if cursor else {}))
        pages.append([one["order_id"] for one in page["data"]])
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert pages == [["c", "c"], ["c", "b"], ["a"]]


@pytest.mark.parametrize(
    "query",
    [
        "status=paid",
        "limit=0",
        "limit=101",
        "limit=x",
        "cursor=!",
        "colour=red",
        "created_from=yesterday",
        "limit=1&limit=2",
        "order_id=%00",
    ],
)
async def test_bad_queries(florin: Florin, query: str) -> None:
    response = await florin.http.get(f"{florin.api_url}/v1/payments?{query}", headers=florin.headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_query")


async def test_old_keys_are_forgotten_and_payments_are_not(florin: Florin) -> None:
    for _ in range(3):
        await florin.create()
    await florin.connection.execute("UPDATE idempotency_keys SET created_at = now() - interval '31 days'")
    await florin.connection.execute("UPDATE payment_requests SET created_at = now() - interval '31 days'")
    await charge(florin)
    assert await prune.sweep(florin.payments) == 3
    assert len(await florin.rows("SELECT 1 FROM idempotency_keys")) == 1
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 4


async def test_logs_are_the_steps(florin: Florin) -> None:
    payment = await florin.create()
    await florin.pay(payment, REFUSED)
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_logs WHERE kind = 'attempt_failed'"))
    response = await florin.http.get(f"{florin.api_url}/v1/payments/{payment['id']}/logs", headers=florin.headers)
    assert [log["kind"] for log in response.json()["data"]] == ["accepted", "opened", "attempt_failed"]


@pytest.mark.parametrize("path", ["capture", "cancel", "refunds", "verify", "logs"])
async def test_what_is_not_there(florin: Florin, path: str) -> None:
    url = f"{florin.api_url}/v1/payments/pay_{UUID(int=1).hex}/{path}"
    method = "GET" if path == "logs" else "POST"
    response = await florin.http.request(method, url, headers={**florin.headers, "idempotency-key": "k"})
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_bad_operations(florin: Florin) -> None:
    payment = await charge(florin)
    url = f"{florin.api_url}/v1/payments/{payment['id']}/refunds"
    missing = await florin.http.post(url, headers=florin.headers)
    assert (missing.status_code, missing.json()["code"]) == (400, "idempotency_key_missing")
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"amount": 0}, 422, "invalid_amount"),
        ({"amount": "5"}, 422, "invalid_field"),
        ({"colour": 1}, 422, "invalid_field"),
        ({"reason": "4242424242424242"}, 422, "card_number_refused"),
    ]
    for fields, status, code in cases:
        refused = await act(florin, payment, "refunds", **fields)
        assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert await florin.rows("SELECT 1 FROM refunds") == []
    assert await florin.rows("SELECT 1 FROM idempotency_keys WHERE operation = 'refund'") == []


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"confirm": True}, "$.token"),
        ({"token": "tok_paid"}, "$.confirm"),
        ({"confirm": True, "token": "tok_paid", "expires_in": 60}, "$.expires_in"),
        ({"capture": "later"}, "$.capture"),
        ({"statement_descriptor": "x" * 23}, "$.statement_descriptor"),
        ({"metadata": {"a": 1}}, "$.metadata[...]"),
        ({"metadata": {"card": "4242424242424242"}}, "$.metadata"),
        ({"confirm": True, "token": "4242424242424242"}, "$.token"),
    ],
)
async def test_bad_creations(florin: Florin, fields: dict[str, Any], path: str) -> None:
    response = await florin.post(order(**fields))
    assert (response.status_code, response.json()["path"]) == (422, path)


async def test_a_token_that_the_psp_does_not_know(florin: Florin) -> None:
    response = await florin.post(order(confirm=True, token="tok_nonsense"))
    assert (response.status_code, response.json()["code"]) == (502, "psp_rejected")
    assert response.json()["payment"]["status"] == "CANCELED"


async def test_a_sync_charge_whose_answer_was_lost_is_found_out_and_never_made_again(florin: Florin) -> None:
    await florin.control(create="lose")
    lost = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert (lost.status_code, lost.json()["payment"]["status"]) == (504, "UNKNOWN")
    again = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert (again.status_code, again.json()["status"]) == (201, "SUCCEEDED")
    assert await balances(florin) == {"available": 1_990}


async def test_a_sync_charge_that_never_arrived_is_canceled_and_never_made(florin: Florin) -> None:
    """The worker died between commit and send: the job asks, finds nothing, and a late retry must not charge."""
    await florin.control(create="drop")
    lost = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert lost.json()["payment"]["status"] == "UNKNOWN"
    await florin.connection.execute("ALTER TABLE payment_logs DISABLE TRIGGER payment_logs_append_only")
    await florin.connection.execute("UPDATE payment_logs SET to_status = 'PENDING' WHERE version = 2")
    await florin.connection.execute("ALTER TABLE payment_logs ENABLE TRIGGER payment_logs_append_only")
    await florin.connection.execute(
        """
        UPDATE payment_requests SET status = 'PENDING', due_at = now(), expires_at = now() - interval '1 second',
               created_at = created_at - interval '2 minutes'
        """
    )
    await florin.control(create="answer")
    await florin.until_stored(lost.json()["payment"]["id"], "CANCELED")
    late = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert (late.status_code, late.json()["code"]) == (502, "psp_unreachable")
    assert await balances(florin) == {}


async def test_a_reply_before_the_psp_has_answered(florin: Florin) -> None:
    await florin.control(create="slow")
    accepted = await florin.post(order(confirm=True, token="tok_paid"), key="k", headers={"prefer": "respond-async"})
    assert (accepted.status_code, accepted.json()["status"]) == (202, "PENDING")
    assert accepted.headers["location"] == f"/v1/payments/{accepted.json()['id']}"
    in_flight = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert (in_flight.status_code, in_flight.headers["retry-after"]) == (409, "1")
    waited = await florin.post(order(confirm=True, token="tok_paid"), key="k", headers={"prefer": "wait=10"})
    assert (waited.status_code, waited.json()["status"]) == (201, "SUCCEEDED")
    assert waited.headers["idempotent-replayed"] == "true"
    url = f"{florin.api_url}/v1/payments/{accepted.json()['id']}"
    assert (await florin.http.get(url, headers=florin.headers)).json()["status"] == "SUCCEEDED"


async def test_a_reader_waits_for_the_outcome(florin: Florin) -> None:
    payment = await florin.create()
    seen = []

    async def wait() -> None:
        url = f"{florin.api_url}/v1/payments/{payment['id']}"
        seen.append((await florin.http.get(url, headers={**florin.headers, "prefer": "wait=10"})).json()["status"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.3)
        await florin.pay(payment)
    assert seen == ["SUCCEEDED"]


@pytest.mark.parametrize("verb", ["capture", "cancel", "refunds"])
async def test_a_hundred_requests_with_one_key_have_one_effect_each(florin: Florin, verb: str) -> None:
    payment = await charge(florin, capture="automatic" if verb == "refunds" else "manual")
    replies = []

    async def ask(number: int) -> None:
        url = f"{florin.api_url}/v1/payments/{payment['id']}/{verb}"
        wish = {"prefer": "wait=20"} if number % 2 else {}
        while True:
            reply = await florin.http.post(url, headers={**florin.headers, "idempotency-key": "k", **wish})
            if reply.status_code != 409:
                break
            await trio.sleep(0.1)
        replies.append(reply)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, number)
    assert {reply.status_code for reply in replies} == {201 if verb == "refunds" else 200}
    assert len({reply.content for reply in replies}) == 1
    assert len(await florin.rows("SELECT 1 FROM psp_operations")) == 2
