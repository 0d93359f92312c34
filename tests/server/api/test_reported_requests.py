"""Requests that public bug reports of other servers describe, and their siblings: one way to read each, and never a 500."""

from typing import Any
from uuid import uuid4

import httpx2
import msgspec
import pytest

from server.api.parsing import encode_cursor
from server.uuid7 import uuid7
from tests.support.florin import Florin, order
from tests.support.payments import act, charge

REFUND = {"type": "refund", "payment_id": "pay_" + "0" * 32}
DEEP = 20_000


async def ask(florin: Florin, method: str, path: str, content: bytes = b"", **headers: str) -> httpx2.Response:
    """A request with bytes as its body."""
    wanted = {**florin.headers, "idempotency-key": uuid4().hex, **headers}
    return await florin.http.request(method, f"{florin.api_url}{path}", content=content, headers=wanted)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/payments", b'{"amount":100,"amount":99999,"currency":"EUR","order_id":"1"}'),
        ("/v1/payments", b'{"amount":100,"currency":"EUR","order_id":"1","order_id":"1"}'),
        ("/v1/payments/{id}/refunds", b'{"amount":1,"amount":1990}'),
        ("/v1/payments/{id}/capture", b'{"amount":1,"\\u0061mount":1990}'),
        ("/v1/batches", b'{"items":[{"type":"refund","payment_id":"x"}],"items":[{"type":"verify","payment_id":"x"}]}'),
        ("/v1/webhook-endpoints", b'{"url":"https://a.example","url":"https://b.example"}'),
        ("/v1/stream/tickets", b'{"origin":"https://a.example","origin":"https://b.example"}'),
    ],
)
async def test_a_member_that_is_given_twice_is_refused(florin: Florin, path: str, body: bytes) -> None:
    payment = await charge(florin)
    response = await ask(florin, "POST", path.format(**payment), body)
    assert (response.status_code, response.json()["code"]) == (400, "duplicate_name")
    assert (await florin.read(payment["id"]))["refunded_amount"] == 0


async def test_a_member_that_is_given_twice_in_an_item_names_the_item(florin: Florin) -> None:
    items = b'[{"type":"refund","payment_id":"pay_%b","amount":1,"amount":99}]' % (b"0" * 32)
    response = await ask(florin, "POST", "/v1/batches", b'{"items":%b}' % items)
    assert response.status_code == 422
    assert [(one["item"], one["code"]) for one in response.json()["errors"]] == [(1, "duplicate_name")]


@pytest.mark.parametrize("values", [("a", "b"), ("a", "a"), ('"a"', "a"), ("", "a")])
async def test_an_idempotency_key_is_given_once(florin: Florin, values: tuple[str, str]) -> None:
    headers = [*florin.headers.items(), *(("idempotency-key", one) for one in values)]
    response = await florin.http.post(f"{florin.api_url}/v1/payments", json=order(), headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "idempotency_key_invalid")
    assert not await florin.rows("SELECT 1 FROM payment_requests")


@pytest.mark.parametrize("key", ['"', '""', '"a', '"a"b"', '"a\\"', '"a\\b"', '"a" "b"', ""])
async def test_an_idempotency_key_is_a_whole_string_or_a_bare_value(florin: Florin, key: str) -> None:
    response = await florin.post(order(), headers={"idempotency-key": key})
    assert (response.status_code, response.json()["code"]) == (400, "idempotency_key_invalid")


async def test_a_quoted_key_is_the_bare_one(florin: Florin) -> None:
    for bare, quoted in (('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"')):
        first, again = [await florin.post(order(), headers={"idempotency-key": one}) for one in (bare, quoted)]
        assert (again.status_code, again.content) == (201, first.content)


async def test_the_order_of_members_does_not_make_another_request(florin: Florin) -> None:
    metadata = {"cart": "7", "sku": "a", "Zone": "north"}
    backwards = dict(reversed(metadata.items()))
    first, again = [await florin.post(order(metadata=one), key="same") for one in (metadata, backwards)]
    assert (again.status_code, again.json(), again.headers["idempotent-replayed"]) == (201, first.json(), "true")
    items = [{"type": "charge", "amount": 5, "currency": "EUR", "order_id": "b", "token": "tok_paid"}]
    replies = []
    for one in (metadata, backwards):
        body = msgspec.json.encode({"items": [dict(reversed({**items[0], "metadata": one}.items()))]})
        replies.append(await ask(florin, "POST", "/v1/batches", body, **{"idempotency-key": "batch"}))
    assert [one.status_code for one in replies] == [200, 200]
    assert replies[0].json()["id"] == replies[1].json()["id"]
    assert (await florin.post(order(metadata={**metadata, "cart": "8"}), key="same")).json()["code"] == "idempotency_key_reused"


async def test_a_path_has_one_form(florin: Florin) -> None:
    payment = await charge(florin)
    name = payment["id"]
    for method, path in (
        ("POST", f"/v1/payments/{name}%2Frefunds"),
        ("POST", f"/v1/payments/{name}%2frefunds"),
        ("POST", f"/v1/payments/{name}/refunds/"),
        ("POST", f"/v1/payments/{name}//refunds"),
        ("POST", f"/v1/payments/{name}/%72efunds"),
        ("POST", f"/v1%2Fpayments/{name}/refunds"),
        ("POST", f"/v1/./payments/{name}/refunds"),
        ("POST", f"/v1/x/../payments/{name}/refunds"),
        ("GET", f"//v1/payments/{name}"),
        ("GET", f"/v1/payments/{name}/"),
        ("GET", f"/V1/payments/{name}"),
        ("GET", "/v1/payments/"),
        ("GET", f"/v1/payments/%70{name[1:]}"),
        ("POST", f"/v1/payments/{name[:3]}%5f{name[4:]}/refunds"),
        ("GET", "/readyz/"),
    ):
        port = int(florin.api_url.rpartition(":")[2])
        response = await florin.http.request(
            method,
            f"http://127.0.0.1:{port}/",
            headers={**florin.headers, "idempotency-key": "k"},
            extensions={"target": path.encode()},
        )
        assert (response.status_code, response.json()["code"]) == (404, "no_such_route"), path
    assert (await florin.read(name))["refunded_amount"] == 0
    said = (await ask(florin, "GET", f"/v1/payments/{name}/")).json()["detail"]
    assert said.endswith(f"did you mean /v1/payments/{name}?")


async def test_a_document_that_is_not_utf_8_is_refused(florin: Florin) -> None:
    payment = await charge(florin)
    items = b'{"type":"charge","order_id":"%b","amount":%b,"currency":"EUR","token":"%b"}'
    for path, body in (
        ("/v1/payments", b'{"amount":"19.90","x":"\xff"}'),
        ("/v1/payments", b'{"amount":19.9,"\xff":1}'),
        (f"/v1/payments/{payment['id']}/refunds", b'{"amount":"1","x":"\xff"}'),
        ("/v1/batches", b'{"items":[{"type":"charge","amount":"1","y":"\xff"}]}'),
        ("/v1/batches", b'{"items":[%b,%b]}' % (items % (b"\\u0041", b"1", b"t"), items % (b"b", b"1", b"\xff"))),
        ("/v1/batches", b'{"items":[%b,%b]}' % (items % (b"\\u0041", b"1", b"t"), items % (b"\\u0042", b"9" * 5_000, b"t"))),
    ):
        response = await ask(florin, "POST", path, body)
        assert response.status_code in (400, 422), response.text


async def test_a_card_number_is_not_repeated(florin: Florin) -> None:
    number = "4242424242424242"
    for path, body in (
        ("/v1/payments", b'{"%b":1}' % number.encode()),
        ("/v1/payments", b'{"amount":1,"currency":"EUR","order_id":"1","capture":"%b"}' % number.encode()),
        ("/v1/payments", b'{"metadata":{"%b":"1","%b":"2"}}' % (number.encode(), number.encode())),
        ("/v1/batches", b'{"items":[{"type":"%b"},{"%b":1}]}' % (number.encode(), number.encode())),
        (f"/v1/{number}", b"{}"),
    ):
        response = await ask(florin, "POST", path, body)
        assert response.status_code in (400, 404, 422)
        assert number not in response.text


def nested(count: int, *, of: str) -> bytes:
    """A document of so many arrays or objects in each other."""
    return b"[" * count + b"]" * count if of == "arrays" else b'{"a":' * count + b"1" + b"}" * count


@pytest.mark.parametrize("of", ["arrays", "objects"])
@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/batches", b'{"items":%b}'),
        ("/v1/batches", b'{"items":[%b]}'),
        ("/v1/batches", b'{"items":[{"type":"verify","payment_id":"x"}],"deadline_seconds":%b}'),
        ("/v1/batches", b'{"items":[{"type":"charge","metadata":%b}]}'),
        ("/v1/batches", b'{"items":[{"type":"charge","metadata":{"a":%b}}]}'),
        ("/v1/payments", b"%b"),
        ("/v1/payments", b'{"nothing":%b}'),
        ("/v1/payments", b'{"metadata":{"a":%b}}'),
        ("/v1/webhook-endpoints", b'{"nothing":%b,"url":"https://a.example"}'),
        ("/v1/payments/pay_00000000000000000000000000000000/refunds", b'{"nothing":%b}'),
    ],
)
async def test_a_document_that_is_nested_deeply_is_refused(florin: Florin, path: str, form: bytes, of: str) -> None:
    response = await ask(florin, "POST", path, form % nested(DEEP if path == "/v1/batches" else 5_000, of=of))
    assert response.status_code in (400, 422), response.text
    assert response.headers["content-type"] == "application/problem+json"


async def test_an_encoded_body_is_refused_even_if_it_is_plain(florin: Florin) -> None:
    for path in ("/v1/payments", "/v1/batches", "/v1/webhook-endpoints"):
        for content in (b"\x1f\x8b\x08\x00", msgspec.json.encode(order())):
            response = await ask(florin, "POST", path, content, **{"content-encoding": "gzip"})
            assert (response.status_code, response.json()["code"]) == (415, "unsupported_encoding")


async def test_a_cursor_and_a_number_have_one_form(florin: Florin) -> None:
    made = encode_cursor(uuid7())
    for query in (
        f"cursor={made}!!",
        f"cursor={made[:-4]}!!!!",
        f"cursor=+{made}",
        f"cursor={made}%3D%3D",
        "cursor=",
        "limit=01",
        "limit=%2B5",
    ):
        response = await ask(florin, "GET", f"/v1/payments?{query}")
        assert (response.status_code, response.json()["code"]) == (422, "invalid_query"), query
    assert (await ask(florin, "GET", f"/v1/payments?cursor={made}")).status_code == 200
    for query in ("after=01", "after=+1", "after=1.0", "after=-1", "after=%D9%A1", "after=9223372036854775808", "wait=1e3"):
        response = await ask(florin, "GET", f"/v1/events?{query}")
        assert (response.status_code, response.json()["code"]) == (422, "invalid_query"), query
    assert (await ask(florin, "GET", "/v1/events/01")).status_code == 404


@pytest.mark.parametrize("verb", ["refunds", "capture"])
async def test_an_amount_that_is_null_is_not_everything(florin: Florin, verb: str) -> None:
    payment = await charge(florin, **({"capture": "manual"} if verb == "capture" else {}))
    response = await act(florin, payment, verb, amount=None)
    assert (response.status_code, response.json()["path"]) == (422, "$.amount")
    body: dict[str, Any] = {"items": [{"type": verb.removesuffix("s"), "payment_id": payment["id"], "amount": None}]}
    response = await ask(florin, "POST", "/v1/batches", msgspec.json.encode(body))
    assert response.json()["errors"][0]["path"] == "$.items[0].amount"
    assert (await florin.read(payment["id"]))["status"] == payment["status"]
