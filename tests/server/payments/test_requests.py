"""Requests of shops, valid and invalid, and their replies."""

from typing import Any
from uuid import UUID

import pytest
import trio

from server.jobs import prune
from tests.support.florin import REFUSED, Florin, eventually, order
from tests.support.payments import act, charge, set_merchant


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
    for seconds in (-20, 40):  # the clock that ids are drawn by may differ from the database's
        await florin.connection.execute(
            "UPDATE payment_requests SET created_at = created_at + make_interval(secs => $1) WHERE order_id = 'a'", (seconds,)
        )
        moved = (await listed(order_id="a"))["data"][0]["created_at"]
        assert "a" not in [one["order_id"] for one in (await listed(created_before=moved))["data"]]
        assert "a" in [one["order_id"] for one in (await listed(created_from=moved))["data"]]
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
    assert await prune.sweep(florin.payments) == 0, "the clock was not watched for a day"
    await florin.connection.execute("UPDATE database_clock SET steady_since = now() - interval '25 hours'")
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
async def test_unknown_resources_are_not_found(florin: Florin, path: str) -> None:
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
    assert (response.status_code, response.json()["code"]) == (422, "token_unknown")
    assert response.json()["payment"]["status"] == "CANCELED"
