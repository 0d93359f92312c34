"""Invalid requests get one clear problem; keys and merchants are separate; one key gives one payment."""

from pathlib import Path

import msgspec
import pytest
import trio

from core.ids import API_KEY, MerchantId, PspAccountId, decode_id, encode_id
from server.clock import utc_now
from server.credentials import api_key, key_hash
from server.db.merchants import api_keys, merchants
from server.uuid7 import uuid7
from tests.support.florin import Florin, eventually, open_florin, order

_MISSING = {"amount": 1, "currency": "EUR"}


BAD_INPUT: list[tuple[object, int, str, str | None]] = [
    (b"{", 400, "malformed_json", None),
    (b"", 400, "malformed_json", None),
    (b"\xff\xfe", 400, "malformed_json", None),
    ([], 422, "invalid_field", "$"),
    (order(colour="red"), 422, "invalid_field", "$.colour"),
    (_MISSING, 422, "invalid_field", "$.order_id"),
    (order(amount="1"), 422, "invalid_field", "$.amount"),
    (order(amount=19.9), 422, "invalid_field", "$.amount"),
    (order(amount=True), 422, "invalid_field", "$.amount"),
    (order(amount=0), 422, "invalid_money", "$.amount"),
    (order(amount=-1), 422, "invalid_money", "$.amount"),
    (order(amount=10**12), 422, "invalid_money", "$.amount"),
    (b'{"amount":1e400,"currency":"EUR","order_id":"1"}', 422, "invalid_field", "$.amount"),
    (b'{"amount":99999999999999999999999,"currency":"EUR","order_id":"1"}', 422, "invalid_money", "$.amount"),
    (order(currency="XXX"), 422, "invalid_money", "$.currency"),
    (order(currency="euro"), 422, "invalid_field", "$.currency"),
    (order(currency="4242424242424242"), 422, "invalid_field", "$.currency"),
    (order(order_id=""), 422, "invalid_field", "$.order_id"),
    (order(order_id="x" * 256), 422, "invalid_field", "$.order_id"),
    (order(order_id="a\0b"), 422, "invalid_field", "$.order_id"),
    (order(expires_in=0), 422, "invalid_field", "$.expires_in"),
    (order(expires_in=10**9), 422, "invalid_field", "$.expires_in"),
    (order(return_url="javascript:alert(1)"), 422, "invalid_field", "$.return_url"),
    (order(return_url="http://[::1"), 422, "invalid_field", "$.return_url"),
    (order(return_url="https://shop.example/\r\nx: y"), 422, "invalid_field", "$.return_url"),
    (order(description="my card is 4242 4242 4242 4242"), 422, "card_number_refused", "$.description"),
    (order(order_id="4242424242424242"), 422, "card_number_refused", "$.order_id"),
    (b"[" * 60_000, 422, "invalid_field", "$"),
    (b'{"amount":' + b"[" * 60_000, 422, "invalid_field", "$.amount"),
    (b" " * 65_537, 413, "body_too_large", None),
    (b" " * 3_000_000, 413, "body_too_large", None),
]


async def test_bad_input(florin: Florin) -> None:
    for body, status, code, path in BAD_INPUT:
        response = await florin.post(body)
        problem = response.json()
        assert (response.status_code, problem["code"], problem.get("path")) == (status, code, path), problem
        assert response.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "request_id"} <= problem.keys()
        assert "4242" not in problem["detail"]
    assert await florin.rows("SELECT 1 FROM payment_requests") == []


@pytest.mark.parametrize(
    ("key", "code"),
    [("", "idempotency_key_invalid"), ("x" * 256, "idempotency_key_invalid"), ("4242424242424242", "card_number_refused")],
)
async def test_bad_idempotency_keys(florin: Florin, key: str, code: str) -> None:
    headers = {**florin.headers, "idempotency-key": key}
    response = await florin.http.post(f"{florin.api_url}/v1/payments", json=order(), headers=headers)
    assert response.json()["code"] == code


async def test_a_missing_idempotency_key(florin: Florin) -> None:
    response = await florin.http.post(f"{florin.api_url}/v1/payments", json=order(), headers=florin.headers)
    assert (response.status_code, response.json()["code"]) == (400, "idempotency_key_missing")


async def test_one_key_gives_one_payment_and_one_reply(florin: Florin) -> None:
    first = await florin.post(order(), key="k")
    again = await florin.post(order(), key="k")
    quoted = await florin.post(order(), key='"k"')
    other = await florin.post(order(amount=2), key="k")

    assert first.status_code == again.status_code == quoted.status_code == 201
    assert first.content == again.content == quoted.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 1


async def test_a_hundred_requests_with_one_key_have_one_effect(florin: Florin) -> None:
    replies = []

    async def ask() -> None:
        while True:
            reply = await florin.post(order(), key="same")
            if reply.status_code != 409:
                break
            assert reply.headers["retry-after"] == "1"
            await trio.sleep(0.1)
        replies.append(reply)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)

    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.content for reply in replies}) == 1
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 1
    assert len(await florin.rows("SELECT 1 FROM psp_operations")) == 1


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer x", "Basic eDp5", "Bearer fl_test_" + "0" * 96, "Bearer fl_test_" + "é" * 96],
)
async def test_unknown_keys(florin: Florin, authorization: str) -> None:
    headers = [(b"authorization", authorization.encode()), (b"idempotency-key", b"k")]
    response = await florin.http.post(f"{florin.api_url}/v1/payments", json=order(), headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_revoked_key(florin: Florin) -> None:
    merchant = await merchants.find_merchant(florin.connection, MerchantId(florin.demo.merchant_id))
    assert merchant is not None
    key, key_id = api_key("test", merchant.id), uuid7()
    await api_keys.add_api_key(florin.connection, merchant.id, key_id, secret_sha256=key_hash(key), hint="x", now=utc_now())
    headers = {"authorization": f"Bearer {key}"}
    assert (await florin.http.get(f"{florin.api_url}/v1/wallets", headers=headers)).status_code == 200

    assert await api_keys.revoke_api_key(florin.connection, merchant.id, key_id, now=utc_now())
    assert not await api_keys.revoke_api_key(florin.connection, merchant.id, key_id, now=utc_now())

    async def refused() -> bool:
        return (await florin.http.get(f"{florin.api_url}/v1/wallets", headers=headers)).status_code == 401

    assert await eventually(refused, seconds=5)
    assert decode_id(API_KEY, encode_id(API_KEY, key_id)) == key_id


async def test_another_merchants_payment_does_not_exist(florin: Florin) -> None:
    payment = await florin.create()
    now = utc_now()
    other = merchants.Merchant(MerchantId(uuid7()), "Other", "test", PspAccountId(florin.demo.psp_account_id), now)
    key = api_key("test", other.id)
    await merchants.add_merchant(florin.connection, other)
    await api_keys.add_api_key(florin.connection, other.id, uuid7(), secret_sha256=key_hash(key), hint="x", now=now)

    url = f"{florin.api_url}/v1/payments/{payment['id']}"
    assert (await florin.http.get(url, headers={"authorization": f"Bearer {key}"})).status_code == 404
    assert (await florin.http.get(url, headers=florin.headers)).status_code == 200
    same_key = await florin.http.post(
        f"{florin.api_url}/v1/payments", json=order(), headers={"authorization": f"Bearer {key}", "idempotency-key": "k"}
    )
    assert same_key.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 303),
        ("GET", "/v1/payments/pay_nonsense", 404),
        ("GET", "/v1/payments/pay_" + "0" * 32, 404),
        ("DELETE", "/v1/payments", 405),
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/healthz", 200),
        ("HEAD", "/healthz", 200),
        ("POST", "/v1/psp/sandbox/nonsense/webhooks", 404),
        ("POST", "/v1/psp/stripe/acct_" + "0" * 32 + "/webhooks", 404),
        ("GET", "/v1/%2e%2e/%00", 404),
    ],
)
async def test_routes(florin: Florin, method: str, path: str, status: int) -> None:
    response = await florin.http.request(method, florin.api_url + path, headers=florin.headers)
    assert response.status_code == status


async def test_a_psp_that_cannot_be_reached_cancels_the_payment(florin: Florin) -> None:
    await florin.connection.execute("UPDATE psp_accounts SET base_url = 'http://127.0.0.1:9'")
    await florin.payments.psps.reload()

    response = await florin.post(order())

    assert (response.status_code, response.json()["code"]) == (502, "psp_unreachable")
    assert response.json()["payment"]["status"] == "CANCELED"
    assert [row["state"] for row in await florin.rows("SELECT state FROM psp_operations")] == ["FAILED"]


async def test_wallets_of_a_new_merchant_are_empty(florin: Florin) -> None:
    assert await florin.wallets() == []


async def test_replies_are_json_that_a_client_can_read_strictly(florin: Florin) -> None:
    payment = await florin.create(
        description='quotes " and \\ and 日本 and {braces}', return_url="https://shop.example/back?a=1&b=2"
    )
    stored = await florin.read(payment["id"])
    assert stored["description"] == 'quotes " and \\ and 日本 and {braces}'
    assert msgspec.json.decode(msgspec.json.encode(stored)) == stored


async def test_metrics_need_the_token(database_url: str, directory: Path) -> None:
    async with open_florin(database_url, directory, metrics_token="s3cret") as florin:
        await florin.create()
        url = f"{florin.api_url}/metrics"
        assert (await florin.http.get(url)).status_code == 401
        assert (await florin.http.get(url, headers={"authorization": "Bearer other"})).status_code == 401
        shown = (await florin.http.get(url, headers={"authorization": "Bearer s3cret"})).text
        assert 'florin_commit_group_items_count{committer="creations"} 1.0' in shown
        assert "florin_commit_seconds_bucket" in shown


async def test_without_a_token_there_are_no_metrics(florin: Florin) -> None:
    assert (await florin.http.get(f"{florin.api_url}/metrics")).status_code == 404
