"""The manners of the API: names, hints, request ids, locations, and browsers."""

from pathlib import Path
from typing import Any

import pytest

from core.ids import REFUND, decode_id
from tests.support.florin import Florin, open_florin, order
from tests.support.payments import act, charge, reference_of, set_merchant
from tests.support.webhooks import call

ORIGIN = "https://shop.example"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ammount": 5}, "unknown field 'ammount': did you mean amount?"),
        ({"orderId": "5"}, "unknown field 'orderId': did you mean order_id?"),
        ({"zzz": "5"}, "unknown field 'zzz': known are amount, currency, order_id,"),
        ({"amount": "19.90"}, "expected an integer number of minor units, 1999 for 19.99, instead of '19.90'"),
        ({"amount": 19.9}, "expected an integer number of minor units, 1999 for 19.99, instead of 19.9"),
        ({"amount": "4242424242424242"}, "expected an integer number of minor units, 1999 for 19.99"),
        ({"amount": None}, "expected an integer number of minor units, 1999 for 19.99"),
    ],
)
async def test_an_error_says_what_would_be_right(florin: Florin, fields: dict[str, Any], said: str) -> None:
    problem = (await florin.post(order(**fields))).json()
    assert (problem["status"], problem["code"]) == (422, "invalid_field")
    assert problem["detail"].startswith(said)
    assert "4242" not in problem["detail"]


async def test_errors_of_items_and_queries_name_what_is_near(florin: Florin) -> None:
    items = [{"type": "refund", "payment": "x"}, {"type": "charge", "amount": "5"}, {"type": "refnd"}]
    errors = (await call(florin, "POST", "batches", {"items": items})).json()["errors"]
    assert errors[0]["detail"].startswith("unknown field 'payment': did you mean payment_id? known are type, payment_id, amount")
    assert errors[1]["detail"].startswith("expected an integer number of minor units")
    problem = (await call(florin, "GET", "payments?orderid=5")).json()
    assert problem["detail"].startswith("unknown parameter 'orderid': did you mean order_id?")


async def test_a_currency_in_lower_case_is_that_currency(florin: Florin) -> None:
    payment = await florin.create(currency="eur")
    assert payment["currency"] == "EUR"
    assert (await florin.row(payment["id"]))["currency"] == "EUR"


async def test_event_types_have_one_documented_name_and_another(florin: Florin) -> None:
    url = "https://93.184.215.14/hook"
    for name in ("event_types", "types"):
        made = await call(florin, "POST", "webhook-endpoints", {"url": url, name: ["refund.*"]})
        assert (made.status_code, made.json()["event_types"]) == (201, ["refund.*"])
        changed = await call(florin, "PATCH", f"webhook-endpoints/{made.json()['id']}", {name: ["payment.*"]})
        assert changed.json()["event_types"] == ["payment.*"]
        wrong = await call(florin, "POST", "webhook-endpoints", {"url": url, name: ["payment.paid"]})
        assert (wrong.json()["code"], wrong.json()["path"]) == ("invalid_event_type", f"$.{name}")
        assert (await call(florin, "GET", f"events?{name}=payment.*")).status_code == 200
        assert (await call(florin, "POST", "stream/tickets", {"origin": ORIGIN, name: []})).status_code == 201
    both = await call(florin, "POST", "webhook-endpoints", {"url": url, "types": ["refund.*"], "event_types": ["refund.*"]})
    assert (both.status_code, both.json()["path"]) == (422, "$.types")
    assert (await call(florin, "GET", "events?types=a&event_types=b")).status_code == 422
    document = (await florin.http.get(f"{florin.api_url}/openapi.json")).json()
    assert "types" not in document["components"]["schemas"]["CreateEndpoint"]["properties"]


async def test_every_response_names_its_request(florin: Florin) -> None:
    replies = [
        await florin.post(order()),
        await florin.post({}),
        await florin.post(b" " * 70_000),
        await call(florin, "GET", "nothing"),
        await call(florin, "DELETE", "payments"),
        await call(florin, "GET", "wallets"),
        await call(florin, "GET", "statement"),
        await call(florin, "GET", "stream"),
        await florin.http.get(f"{florin.api_url}/v1/wallets"),
        *[await florin.http.get(f"{florin.api_url}/{path}") for path in ("", "docs", "livez", "readyz", "openapi.json")],
    ]
    names = [one.headers["request-id"] for one in replies]
    assert len(set(names)) == len(names)
    for name, reply in zip(names, replies, strict=True):
        assert decode_id("req", name)
        if reply.headers["content-type"] == "application/problem+json":
            assert reply.json()["request_id"] == name


async def test_a_request_has_the_digits_of_what_it_creates(florin: Florin) -> None:
    made = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert made.headers["request-id"].removeprefix("req_") == made.json()["id"].removeprefix("pay_")
    again = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert again.headers["request-id"] != made.headers["request-id"]
    refund = await act(florin, made.json(), "refunds", amount=5)
    assert refund.headers["request-id"].removeprefix("req_") == refund.json()["id"].removeprefix("ref_")


async def test_what_is_created_has_a_location(florin: Florin) -> None:
    made = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    again = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    declined = await florin.post(order(confirm=True, token="tok_declined"))
    waiting = await florin.post(order(), headers={"prefer": "respond-async"})
    refunds = [await act(florin, made.json(), "refunds", key="r", amount=5) for _ in range(2)]
    endpoint = await call(florin, "POST", "webhook-endpoints", {"url": "https://93.184.215.14/hook"})
    batch = await call(florin, "POST", "batches", {"items": [{"type": "verify", "payment_id": made.json()["id"]}]})
    assert made.headers["location"] == again.headers["location"] == f"/v1/payments/{made.json()['id']}"
    assert refunds[0].headers["location"] == refunds[1].headers["location"]
    for reply in (made, declined, waiting, refunds[0], endpoint, batch):
        found = await florin.http.get(f"{florin.api_url}{reply.headers['location']}", headers=florin.headers)
        created = reply.json().get("payment", reply.json())
        assert (found.status_code, found.json()["id"]) == (200, created["id"])


async def test_the_address_of_a_stream_is_absolute(florin: Florin) -> None:
    made = (await call(florin, "POST", "stream/tickets", {"origin": ORIGIN})).json()
    assert made["url"] == f"{florin.api_url.replace('http', 'ws')}/v1/stream?ticket={made['ticket']}"


async def test_options(florin: Florin) -> None:
    reply = await florin.http.options(f"{florin.api_url}/v1/payments", headers={"origin": ORIGIN})
    assert (reply.status_code, reply.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert (await florin.http.options(f"{florin.api_url}/v1/nothing")).status_code == 404


async def test_pages_of_allowed_origins_may_get_tickets_and_read_what_is_public(database_url: str, directory: Path) -> None:
    async with open_florin(database_url, directory, allowed_origins=f"{ORIGIN}, https://admin.example") as florin:

        async def granted(method: str, path: str, *, origin: str = ORIGIN, asks: str = "") -> str | None:
            headers = {**florin.headers, "origin": origin, **({"access-control-request-method": asks} if asks else {})}
            body = {"origin": ORIGIN} if method == "POST" else None
            reply = await florin.http.request(method, f"{florin.api_url}{path}", json=body, headers=headers)
            if asks and "access-control-allow-origin" in reply.headers:
                assert reply.headers["access-control-allow-methods"] == asks
                assert "authorization" in reply.headers["access-control-allow-headers"]
            found: str | None = reply.headers.get("access-control-allow-origin")
            assert found is None or "origin" in reply.headers["vary"]
            return found

        assert await granted("POST", "/v1/stream/tickets") == ORIGIN
        assert await granted("OPTIONS", "/v1/stream/tickets", asks="POST") == ORIGIN
        assert await granted("GET", "/v1/receipt-keys") == ORIGIN
        assert await granted("GET", "/openapi.json", origin="https://admin.example") == "https://admin.example"
        for method, path, origin, asks in (
            ("POST", "/v1/stream/tickets", "https://evil.example", ""),
            ("OPTIONS", "/v1/stream/tickets", "https://shop.example.evil.example", "POST"),
            ("OPTIONS", "/v1/stream/tickets", ORIGIN, "DELETE"),
            ("OPTIONS", "/v1/payments", ORIGIN, "POST"),
            ("GET", "/v1/payments", ORIGIN, ""),
            ("GET", "/v1/wallets", ORIGIN, ""),
            ("GET", "/openapi.json", "null", ""),
            ("GET", "/metrics", ORIGIN, ""),
            ("OPTIONS", "/metrics", ORIGIN, "GET"),
        ):
            assert await granted(method, path, origin=origin, asks=asks) is None, (method, path, origin)


async def test_one_paid_payment_per_order(florin: Florin) -> None:
    await set_merchant(florin, one_paid_payment_per_order=True)
    first = await charge(florin, order_id="a")
    refused = await florin.post(order(order_id="a", confirm=True, token="tok_paid"))
    assert (refused.status_code, refused.json()["code"]) == (409, "order_is_paid")
    assert first["id"] in refused.json()["detail"]
    assert (await act(florin, first, "refunds")).status_code == 201
    assert (await florin.post(order(order_id="a"))).json()["code"] == "order_is_paid", "for ever"
    page = await florin.create(order_id="b")
    assert (await florin.post(order(order_id="b"))).json()["code"] == "order_has_live_payment"
    await act(florin, page, "cancel")
    assert (await florin.post(order(order_id="b", confirm=True, token="tok_declined"))).status_code == 402
    assert (await florin.post(order(order_id="b", confirm=True, token="tok_paid"))).status_code == 201


async def test_a_refunded_order_is_paid_again_if_the_merchant_says_so(florin: Florin) -> None:
    await set_merchant(florin, one_paid_payment_per_order=True, pays_refunded_orders_again=True)
    first = await charge(florin, order_id="a")
    await act(florin, first, "refunds", amount=990)
    assert (await florin.post(order(order_id="a"))).json()["code"] == "order_is_paid"
    await act(florin, first, "refunds")
    second = await charge(florin, order_id="a")
    assert (await florin.post(order(order_id="a"))).json()["code"] == "order_is_paid"
    assert second["id"] in (await florin.post(order(order_id="a"))).json()["detail"]


async def test_an_order_is_not_paid_again_before_its_refund_has_succeeded(florin: Florin) -> None:
    await set_merchant(florin, one_paid_payment_per_order=True, pays_refunded_orders_again=True)
    await florin.control(refunds_end_as="pending")
    for end, status, code in (("failed", 409, "order_is_paid"), ("succeeded", 201, None)):
        payment = await charge(florin, order_id=end)
        refund = (await act(florin, payment, "refunds")).json()
        assert refund["status"] == "PENDING"
        assert (await florin.post(order(order_id=end))).json()["code"] == "order_is_paid"
        at_psp = {"end_refund": str(decode_id(REFUND, refund["id"])), "of": await reference_of(florin, payment), "as": end}
        await florin.control(**at_psp)
        await florin.until_event(f"refund.{end}", refund["id"])
        again = await florin.post(order(order_id=end))
        assert (again.status_code, again.json().get("code")) == (status, code)


async def test_a_payment_made_before_the_terms_changed_holds_its_order(florin: Florin) -> None:
    page = await florin.create(order_id="a")
    for terms in ({"one_paid_payment_per_order": True}, {"one_live_payment_per_order": True}):
        await set_merchant(florin, **terms)
        assert (await florin.post(order(order_id="a"))).json()["code"] == "order_has_live_payment"
    await act(florin, page, "cancel")
    assert (await florin.post(order(order_id="a"))).status_code == 201


async def test_an_order_that_was_paid_late_or_before_is_paid(florin: Florin) -> None:
    await charge(florin, order_id="before")
    await set_merchant(florin, one_paid_payment_per_order=True)
    assert (await florin.post(order(order_id="before"))).json()["code"] == "order_is_paid"
    late = await florin.create(order_id="late")
    reference = await reference_of(florin, late)
    await act(florin, late, "cancel")
    other = await florin.create(order_id="late")
    await florin.control(capture_late=reference)
    await florin.until_stored(late["id"], "SUCCEEDED")
    await act(florin, other, "cancel")
    assert (await florin.post(order(order_id="late"))).json()["code"] == "order_is_paid"


async def test_customers_of_a_live_merchant_return_to_its_hosts_only(florin: Florin) -> None:
    assert (await florin.post(order(return_url="https://anywhere.example/"))).status_code == 201, "in test mode"
    await set_merchant(florin, mode="live", return_hosts=["shop.example", "*.pay.example"])

    async def answered(url: str) -> str:
        reply = (await florin.post(order(return_url=url))).json()
        assert reply.get("path") in (None, "$.return_url")
        return str(reply.get("code", reply.get("status")))

    for url in (
        "https://evil.example/",
        "https://shop.example.evil.example/",
        "https://pay.example/",
        "https://evilpay.example/",
        "https://evil.example#@shop.example/",
        "https://evil.example?@shop.example/",
    ):
        assert await answered(url) == "return_host_not_allowed", url
    for url in (
        "https://evil.example\\@shop.example/",
        "https://evil.example\\.pay.example/",
        "https://evil.example%5c.pay.example/",
        "https://evil.example;.pay.example/",
        "https://evil.example^.pay.example/",
        "https://.pay.example/",
        "https://shop.example./",
        "https://u:p@shop.example/",
        "https://shop.example@evil.example/",
        "https://shop.example:x/",
        "https://shop.example:99999/",
        " https://shop.example/",
        "https://shop.example/\\evil",
        "https:shop.example/",
        "https:///shop.example/",
        "https://sh\u00f6p.example/",
    ):
        assert await answered(url) == "invalid_field", url
    for url in ("https://shop.example/thanks", "https://SHOP.example:8443/", "https://a.b.pay.example/x?y=z"):
        assert await answered(url) != "return_host_not_allowed", url
