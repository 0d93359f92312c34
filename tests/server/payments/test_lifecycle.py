"""Authorize, capture, void: the life of a payment over real HTTP."""

import pytest
import trio

from tests.support.florin import PAID, Florin, eventually, order
from tests.support.payments import act, balances, charge


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
    if other.status_code != 200 or verb == "void":  # otherwise the follow-up job was faster
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


async def test_a_sync_charge_whose_answer_was_lost_is_found_out_and_never_made_again(florin: Florin) -> None:
    await florin.control(create="lose")
    lost = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert (lost.status_code, lost.json()["payment"]["status"]) == (504, "UNKNOWN")
    again = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert (again.status_code, again.json()["status"]) == (201, "SUCCEEDED")
    assert await balances(florin) == {"available": 1_990}


async def test_a_sync_charge_that_never_arrived_is_canceled_and_never_made(florin: Florin) -> None:
    """The worker died between commit and send: the job fetches, finds nothing, and a late retry must not charge."""
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
