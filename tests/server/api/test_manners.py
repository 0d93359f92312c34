"""Requests that are refused early and clearly: large, late, encoded or ambiguous bodies, and card numbers wherever they hide."""

import msgspec
import pytest
import trio

from server.api.parsing import WAIT_SECONDS_MAX
from server.cli.deploy import haproxy
from server.http.server import connection
from tests.support.florin import Florin, order

CARD = "4242424242424242"


async def _raw(florin: Florin, data: bytes, *, seconds: float = 5.0) -> bytes:
    """Send bytes to the API, and read until it closes."""
    port = int(florin.api_url.rpartition(":")[2])
    received = b""
    with trio.fail_after(seconds):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(data)
            async for part in stream:
                received += part
    return received


def _head(florin: Florin, *lines: str, path: str = "/v1/payments") -> bytes:
    key = florin.demo.api_key
    fields = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {key}",
        "Idempotency-Key: k",
        "Connection: close",
        *lines,
    ]
    return "\r\n".join([*fields, "", ""]).encode()


@pytest.mark.parametrize("lines", [(), ("Expect: 100-continue",)], ids=["plain", "expecting"])
async def test_a_body_that_says_to_be_too_large_is_refused_before_it_comes(florin: Florin, lines: tuple[str, ...]) -> None:
    began = trio.current_time()
    reply = await _raw(florin, _head(florin, "Content-Length: 100000000", *lines), seconds=8)
    assert reply.startswith(b"HTTP/1.1 413 "), reply
    assert b"100 Continue" not in reply
    assert trio.current_time() - began < connection.LINGER_SECONDS + 2


async def test_a_body_that_is_late_gets_408(florin: Florin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.5)
    reply = await _raw(florin, _head(florin, "Content-Length: 100") + b'{"amount": 5', seconds=10)
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 "), reply
    assert b"connection: close" in head.lower()
    assert msgspec.json.decode(body)["code"] == "body_too_late"


async def test_an_encoded_body_gets_415(florin: Florin) -> None:
    response = await florin.post(b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_encoding")
    assert (await florin.post(order(), headers={"content-encoding": "identity"})).status_code == 201


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"amount": 5, "currency": "EUR", "order_id": "1", "amount": 6}', "amount"),
        (b'{"amount": 5, "currency": "EUR", "order_id": "1", "\\u0061mount": 6}', "amount"),
        (b'{"amount": 5, "currency": "EUR", "order_id": "1", "metadata": {"a": "1", "a" : "2"}}', "a"),
    ],
)
async def test_a_name_that_is_given_twice_is_refused(florin: Florin, body: bytes, name: str) -> None:
    response = await florin.post(body)
    assert (response.status_code, response.json()["code"]) == (400, "duplicate_name")
    assert repr(name) in response.json()["detail"]
    assert not await florin.rows("SELECT 1 FROM payment_requests")


async def test_names_may_repeat_in_different_objects_and_in_texts(florin: Florin) -> None:
    payment = await florin.create(description='{"amount": 1, "amount": 2}', metadata={"amount": "5", "order_id": "6", '\\"': "a"})
    assert payment["metadata"] == {"amount": "5", "order_id": "6", '\\"': "a"}
    items = b'[{"type":"verify","payment_id":"x"},{"type":"verify","payment_id":"x","payment_id":"y"}]'
    headers = {**florin.headers, "idempotency-key": "b"}
    for body, code in (
        (b'{"items": %b}' % items, "invalid_items"),
        (b'{"items": [], "concurrency": 1, "concurrency": 2, "items": %b}' % items, "duplicate_name"),
    ):
        response = await florin.http.post(f"{florin.api_url}/v1/batches", content=body, headers=headers)
        assert response.json()["code"] == code, response.text


@pytest.mark.parametrize(
    "fields",
    [
        {"description": f"{CARD} 123"},
        {"description": f"order 77 {CARD}"},
        {"description": "4242\u00a0\u00a04242\u20134242.4242"},
        {"metadata": {"card2": CARD}},
        {"metadata": {"4242 4242": "4242 4242"}},
        {"metadata": {CARD: "x"}},
        {"return_url": "https://shop.example/?c=%34%32%34%32%34%32%34%32%34%32%34%32%34%32%34%32"},
        {"statement_descriptor": "4242-4242-4242-4242"},
    ],
    ids=ascii,
)
async def test_a_card_number_does_not_get_in(florin: Florin, fields: dict[str, object]) -> None:
    response = await florin.post(order(**fields))
    assert (response.status_code, response.json()["code"]) == (422, "card_number_refused")
    assert not await florin.rows("SELECT 1 FROM payment_requests")


async def test_a_card_number_does_not_get_in_by_other_doors(florin: Florin) -> None:
    async def refused(method: str, path: str, *, key: str = "k", body: object = None) -> None:
        content = msgspec.json.encode(body) if body is not None else b""
        headers = {**florin.headers, "idempotency-key": key}
        response = await florin.http.request(method, f"{florin.api_url}{path}", content=content, headers=headers)
        assert (response.status_code, response.json()["code"]) == (422, "card_number_refused"), (path, response.text)

    endpoint = {"url": "https://shop.example/hook"}
    await refused("POST", "/v1/webhook-endpoints", key=CARD, body=endpoint)
    await refused("POST", "/v1/webhook-endpoints", body={**endpoint, "description": CARD})
    await refused("POST", "/v1/webhook-endpoints", body={"url": f"https://shop.example/{CARD}"})
    await refused("PUT", "/v1/consumers/4242.4242.4242.4242", body={"acked_seq": 0})
    await refused("GET", f"/v1/payments?order_id={CARD}")
    await refused("GET", "/v1/payments?order_id=4242%204242+4242-4242")
    await refused("POST", "/v1/batches", key=CARD, body={"items": []})
    payment = await florin.create()
    await refused("POST", f"/v1/payments/{payment['id']}/refunds", body={"reason": f"{CARD} 999"})
    await refused("POST", f"/v1/payments/{payment['id']}/cancel", key=f"a-{CARD}", body={})
    await florin.require_promises()


def test_the_balancer_waits_longer_than_any_request() -> None:
    said = haproxy.render(bind="127.0.0.1:8000", host="127.0.0.1", port=8080, workers=1)
    seconds = next(int(line.split()[-1].rstrip("s")) for line in said.splitlines() if "timeout server" in line)
    assert seconds >= WAIT_SECONDS_MAX + 5
