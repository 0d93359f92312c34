"""Batches over the API: the result of every item, deadlines, resumption, other workers, and invalid batches."""

from typing import Any

import httpx2
import msgspec
import trio
import trio.testing

from core.batch import ItemType, item_key, parse_resume_token, resume_token
from core.ids import MerchantId, PspAccountId, decode_id
from server.api.batches import bodies
from server.clock import utc_now
from server.credentials import api_key, key_hash
from server.db.merchants.api_keys import add_api_key
from server.db.merchants.merchants import Merchant, add_merchant
from server.flows.batches.batch import RUNNING_MAX
from server.jobs import prune
from server.uuid7 import uuid7
from tests.support.batches import Items, charge, charged_at_the_psp, charges, lines_of, post, statuses, until_ended
from tests.support.florin import Florin, eventually


async def test_every_kind_of_item(florin: Florin) -> None:
    first = await florin.create(confirm=True, token="tok_paid", order_id="a")
    authorized = await florin.create(confirm=True, token="tok_paid", order_id="b", capture="manual")
    page = await florin.create(order_id="c")
    items = [
        charge(1),
        charge(2, "tok_declined"),
        {"type": "verify", "payment_id": first["id"]},
        {"type": "capture", "payment_id": authorized["id"], "amount": 500},
        {"type": "refund", "payment_id": first["id"], "amount": 90, "reason": "late"},
        {"type": "verify", "payment_id": "pay_" + "0" * 32},
        charge(7, capture="manual"),
        {"type": "verify", "payment_id": page["id"]},
        {"type": "capture", "payment_id": first["id"], "amount": 5},
    ]
    response = await post(florin, items)
    assert response.status_code == 200, response.text
    batch = response.json()
    assert (batch["status"], batch["resume_token"], batch["count"]) == ("COMPLETED", None, 9)
    (told,) = await florin.rows("SELECT data FROM events WHERE type = 'batch.completed'")
    assert msgspec.json.decode(told["data"])["outcomes"] == {name: count for name, count in batch["outcomes"].items() if count}
    assert statuses(batch) == [
        *("SUCCEEDED", "DECLINED", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED"),
        *("FAILED", "SUCCEEDED", "PENDING", "FAILED"),
    ]
    by_number = {one["item"]: one for one in batch["items"]}
    assert by_number[1]["success"] == 1
    declined = by_number[2]
    assert (declined["success"], declined["code"], declined["did_check_again"]) == (0, "card_declined", True)
    assert (by_number[4]["payment_status"], by_number[7]["payment_status"]) == ("SUCCEEDED", "AUTHORIZED")
    assert by_number[5]["refund_id"].startswith("ref_")
    assert (by_number[6]["code"], by_number[9]["code"]) == ("no_such_payment", "not_capturable")
    assert batch["outcomes"] == {"SUCCEEDED": 5, "DECLINED": 1, "PENDING": 1, "UNKNOWN": 0, "FAILED": 2, "NOT_STARTED": 0}
    assert (await florin.read(authorized["id"]))["captured_amount"] == 500
    assert (await florin.read(first["id"]))["refunded_amount"] == 90
    stored = (await florin.rows("SELECT sealed_items FROM batches"))[0]["sealed_items"]
    assert stored is None, "tokens are forgotten with the end"


async def test_a_batch_is_carried_out_once_for_a_key(florin: Florin) -> None:
    first = await post(florin, charges(3), key="k")
    again = await post(florin, charges(3), key="k")
    other = await post(florin, charges(4), key="k")
    assert first.json() == again.json()
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await charged_at_the_psp(florin) == 3
    accepted = await post(florin, charges(2), key="async", prefer="respond-async")
    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"/v1/batches/{accepted.json()['id']}"
    joined = await post(florin, charges(2), key="async")
    assert (joined.status_code, joined.json()["id"], statuses(joined.json())) == (200, accepted.json()["id"], ["SUCCEEDED"] * 2)


async def test_every_mistake_is_named_and_nothing_is_begun(florin: Florin) -> None:
    items: Items = [
        charge(1),
        {**charge(2), "amount": 0},
        {**charge(3), "currency": "XXY"},
        {"type": "pay"},
        {"type": "verify", "payment_id": "pay_x"},
        {**charge(6), "description": "4242 4242 4242 4242"},
        {**charge(7), "colour": "red"},
        {"type": "charge", "order_id": "x"},
        {"type": "refund", "payment_id": "pay_" + "1" * 32, "amount": -1},
        {**charge(10), "token": 7},
    ]
    response = await post(florin, items)
    assert response.status_code == 422
    problem = response.json()
    assert problem["code"] == "invalid_items"
    assert "9 of 10 items" in problem["detail"]
    assert [one["item"] for one in problem["errors"]] == list(range(2, 11))
    assert problem["errors"][0]["path"] == "$.items[1].amount"
    assert problem["errors"][4]["code"] == "card_number_refused"
    assert problem["more_errors"] == 0
    many = (await post(florin, [{"type": "pay"}] * 150)).json()
    assert (len(many["errors"]), many["more_errors"]) == (100, 50)
    repeated = await post(florin, [charge(1), charge(2), charge(1)])
    assert repeated.json()["errors"] == [
        {
            "item": 3,
            "path": "$.items[2].order_id",
            "code": "repeated_item",
            "detail": "item 1 has the same order: in one batch there is one charge for each",
        }
    ]
    for body, code in ((b"{}", "invalid_field"), (b'{"items": []}', "invalid_field"), (b"x", "malformed_json")):
        assert (await post(florin, body)).json()["code"] == code
    assert (await post(florin, charges(1), deadline_seconds=901)).json()["path"] == "$.deadline_seconds"
    assert (await post(florin, charges(1), concurrency=0)).json()["path"] == "$.concurrency"
    assert (await post(florin, charges(10_001))).json()["path"] == "$.items"
    assert await florin.rows("SELECT 1 FROM batches") == []
    assert await florin.rows("SELECT 1 FROM payment_requests") == []


async def test_only_a_merchants_batch_may_be_large(florin: Florin) -> None:
    items = [charge(number, description="d" * 900) for number in range(1_000)]
    text = msgspec.json.encode({"items": items})
    assert len(text) > 10 * 65_536
    url = f"{florin.api_url}/v1/batches"
    stranger = await florin.http.post(url, content=text, headers={"idempotency-key": "k"})
    assert stranger.status_code == 401
    assert (await florin.http.post(url, content=text, headers=florin.headers)).json()["code"] == "idempotency_key_missing"
    assert (await florin.http.post(url, content=text * 20, headers={**florin.headers, "idempotency-key": "k"})).status_code == 413
    accepted = await post(florin, text, prefer="respond-async")
    assert accepted.status_code == 202
    assert accepted.json()["count"] == 1_000
    await florin.http.post(f"{url}/{accepted.json()['id']}/stop", headers=florin.headers)
    await until_ended(florin, accepted.json()["id"])


async def test_a_deadline_is_408_and_a_resumption_charges_nothing_twice(florin: Florin) -> None:
    await florin.control(latency={"seconds": 0.4}, webhooks="lose")
    began = trio.current_time()
    late = await post(florin, charges(8), deadline_seconds=1, concurrency=1, key="k")
    assert trio.current_time() - began < 3
    assert (late.status_code, late.headers["content-type"]) == (408, "application/problem+json")
    problem = late.json()
    assert problem["code"] == "batch_deadline_passed"
    assert "nothing is charged twice" in problem["detail"]
    done = statuses(problem).count("SUCCEEDED")
    assert done in (1, 2), "each takes 0.4 s, and more on a slow machine"
    assert statuses(problem) == ["SUCCEEDED"] * done + ["UNKNOWN"] + ["NOT_STARTED"] * (7 - done)
    unknown = problem["items"][done]
    assert (unknown["success"], unknown["code"], unknown["payment_status"]) == (0, "deadline_passed", "UNKNOWN")
    assert (await post(florin, charges(8), deadline_seconds=1, concurrency=1, key="k")).status_code == 408, (
        "a retry is told the same"
    )
    (alert,) = await florin.rows("SELECT kind, title, detail FROM alerts")
    assert alert["kind"] == "batch_deadline"
    assert f"{done} of 8 items are done" in alert["title"]

    path, token = f"/{problem['batch']['id']}/resume", problem["resume_token"]
    wrong = await post(florin, msgspec.json.encode({"resume_token": "res_x"}), path=path)
    assert (wrong.status_code, wrong.json()["code"]) == (422, "resume_token_wrong")
    body = msgspec.json.encode({"resume_token": token, "deadline_seconds": 60, "concurrency": 10})
    resumed = await post(florin, body, path=path)
    assert resumed.status_code == 200, resumed.text
    assert statuses(resumed.json()) == ["SUCCEEDED"] * 8
    assert (await post(florin, body, path=path)).json()["run"] == 2, "the same token again is the same resumption"
    assert await charged_at_the_psp(florin) == 8
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 8
    assert (
        await post(florin, msgspec.json.encode({"resume_token": resume_token(*_run(token, 2))}), path=path)
    ).status_code == 409


def _run(token: str, run: int) -> Any:
    return parse_resume_token(token)[0], run


async def test_results_are_streamed_as_they_become_known(florin: Florin) -> None:
    lines = await lines_of(florin, "POST", "", {"items": [*charges(30), charge(31, "tok_declined")]})
    assert [lines[0]["object"], lines[-1]["object"]] == ["batch", "summary"]
    items = lines[1:-1]
    assert sorted(one["item"] for one in items) == list(range(1, 32))
    assert [one["position"] for one in items] == list(range(1, 32))
    assert lines[-1]["outcomes"]["DECLINED"] == 1
    again = await lines_of(florin, "GET", f"/{lines[0]['id']}?after=29")
    assert [one["position"] for one in again[1:-1]] == [30, 31]
    page = await florin.http.get(f"{florin.api_url}/v1/batches/{lines[0]['id']}/items?limit=20&after=20", headers=florin.headers)
    assert (page.json()["position"], page.json()["has_more"]) == (31, False)
    listed = await florin.http.get(f"{florin.api_url}/v1/batches", headers=florin.headers)
    assert [one["id"] for one in listed.json()["data"]] == [lines[0]["id"]]
    await florin.control(latency={"seconds": 2})
    late = await lines_of(florin, "POST", "", {"items": charges(2), "deadline_seconds": 1, "concurrency": 1})
    assert (late[-1]["status"], late[-1]["batch"]["status"]) == (408, "TIMED_OUT")
    assert late[-1]["resume_token"]


async def test_a_stopped_batch_finishes_items_under_way(florin: Florin) -> None:
    await florin.control(latency={"seconds": 0.5})
    batch_id = (await post(florin, charges(20), concurrency=2, prefer="respond-async")).json()["id"]
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests"))
    stopped = await post(florin, b"", path=f"/{batch_id}/stop")
    assert stopped.status_code == 202
    batch = await until_ended(florin, batch_id)
    assert batch["status"] == "STOPPED"
    assert batch["outcomes"]["UNKNOWN"] == 0
    assert 1 <= batch["outcomes"]["SUCCEEDED"] < 20
    assert batch["outcomes"]["SUCCEEDED"] + batch["outcomes"]["NOT_STARTED"] == 20
    assert await florin.rows("SELECT 1 FROM alerts") == [], "who stops a batch knows"
    await florin.control(latency=None)
    resumed = await post(florin, msgspec.json.encode({"resume_token": batch["resume_token"]}), path=f"/{batch_id}/resume")
    assert (resumed.json()["status"], resumed.json()["outcomes"]["SUCCEEDED"]) == ("COMPLETED", 20)
    assert await charged_at_the_psp(florin) == 20
    for verb, code in (("stop", 202), ("resume", 409)):
        body = msgspec.json.encode({"resume_token": batch["resume_token"].replace("_1", "_2")}) if verb == "resume" else b""
        assert (await post(florin, body, path=f"/{batch_id}/{verb}")).status_code == code
    assert (await post(florin, b"", path=f"/bat_{'0' * 32}/stop")).status_code == 404


async def test_a_merchant_sees_only_its_own_batches(florin: Florin) -> None:
    batch_id = (await post(florin, charges(1))).json()["id"]
    url = f"{florin.api_url}/v1/batches/{batch_id}"
    assert (await florin.http.get(url)).status_code == 401
    merchant_id = MerchantId(uuid7())
    stranger = api_key("test", merchant_id)
    merchant = Merchant(merchant_id, "Stranger", "test", PspAccountId(florin.demo.psp_account_id), utc_now())
    await add_merchant(florin.connection, merchant)
    await add_api_key(florin.connection, merchant_id, uuid7(), secret_sha256=key_hash(stranger), hint="", now=utc_now())
    headers = {"authorization": f"Bearer {stranger}"}
    assert (await florin.http.get(url, headers=headers)).status_code == 404
    assert (await florin.http.get(f"{url}/items", headers=headers)).status_code == 404
    assert (await florin.http.post(f"{url}/stop", headers=headers)).status_code == 404
    keys = [(b"authorization", florin.headers["authorization"].encode()), (b"idempotency-key", f"§{batch_id}:1".encode())]
    forged = await florin.http.post(f"{florin.api_url}/v1/payments", content=b"{}", headers=keys)
    assert forged.json()["code"] == "idempotency_key_invalid", "nobody can take the key of an item"


def test_the_keys_of_items() -> None:
    batch_id = MerchantId(decode_id("bat", "bat_" + "1" * 32))
    assert item_key(batch_id, 7) == f"§bat_{'1' * 32}:7"  # type: ignore[arg-type]
    assert item_key(batch_id, 7, attempt=2).endswith(":7:2")  # type: ignore[arg-type]
    assert set(ItemType) == {"charge", "verify", "capture", "refund"}
    assert bodies.BODY_BYTES_MAX == 8_388_608


async def test_an_old_batch_cannot_be_resumed(florin: Florin) -> None:
    """By then its items' keys may be deleted, which ensure that nothing is charged twice."""
    await florin.control(latency={"seconds": 2})
    late = (await post(florin, charges(2), concurrency=1, deadline_seconds=1)).json()
    await florin.connection.execute("UPDATE batches SET created_at = now() - interval '7 days'")
    body = msgspec.json.encode({"resume_token": late["resume_token"]})
    refused = await post(florin, body, path=f"/{late['batch']['id']}/resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "batch_not_resumable")
    await florin.connection.execute("UPDATE database_clock SET steady_since = now() - interval '25 hours'")
    await prune.sweep(florin.payments)
    assert (await florin.rows("SELECT sealed_items FROM batches"))[0]["sealed_items"] is None


async def test_a_charge_that_needs_its_customer_delays_no_other_item(florin: Florin) -> None:
    began = trio.current_time()
    response = await post(florin, [charge(1, "tok_3ds"), charge(2)])
    assert trio.current_time() - began < 5
    first = response.json()["items"][0]
    assert (first["status"], first["code"], first["payment_status"]) == ("PENDING", "action_required", "PENDING")


async def test_equal_requests_at_once_are_one_batch_even_where_there_is_no_room_for_two(florin: Florin) -> None:
    await florin.control(latency={"seconds": 2})
    for number in range(RUNNING_MAX - 1):
        await post(florin, [charge(number)], prefer="respond-async")
    replies: list[httpx2.Response] = []

    async def ask() -> None:
        replies.append(await post(florin, [charge(99)], key="twin", prefer="respond-async"))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask)
    assert [one.status_code for one in replies] == [202] * 4
    assert len({one.json()["id"] for one in replies}) == 1
    refused = await post(florin, [charge(100)], prefer="respond-async")
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_batches")
