"""The client that merchants use, against a real server: what it asks, what it repeats, what it raises."""

from collections.abc import Callable
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
import trio

from core.signing import sign_standard
from server.merchant_client import ApiError, AsyncFlorin, Event, Florin, FlorinUnavailable, Gap, InvalidSignature, verify_webhook
from server.merchant_client import client as module
from tests.support.florin import Florin as Server
from tests.support.http import serving
from tests.support.receiver import receiving
from tests.support.webhooks import add

T = TypeVar("T")


async def in_thread(florin: Server, work: Callable[[Florin], T]) -> T:
    """Use the client that waits as its users do: outside the event loop."""

    def use() -> T:
        with Florin(florin.api_url, florin.demo.api_key) as client:
            return work(client)

    return await trio.to_thread.run_sync(use)


async def test_create_get_and_refund_without_an_event_loop(florin: Server) -> None:
    def work(client: Florin) -> None:
        payment = client.create(amount=1_990, currency="EUR", order_id="1", confirm=True, token="tok_paid", idempotency_key="k")
        assert payment.status == "SUCCEEDED"
        again = client.create(amount=1_990, currency="EUR", order_id="1", confirm=True, token="tok_paid", idempotency_key="k")
        assert again == payment
        refunded = client.refund(payment.id, amount=400, reason="returned")
        assert (refunded.status, refunded.amount) == ("SUCCEEDED", 400)
        assert client.get(payment.id).refunded_amount == 400
        with pytest.raises(ApiError) as declined:
            client.create(amount=1, currency="EUR", order_id="2", confirm=True, token="tok_declined")
        assert (declined.value.status, declined.value.code) == (402, "declined")
        assert declined.value.payment is not None
        assert declined.value.payment.status == "DECLINED"
        with pytest.raises(ApiError) as missing:
            client.get("pay_nothing")
        assert missing.value.code == "not_found"
        with pytest.raises(ApiError) as wrong:
            client.create(amount=-1, currency="EUR", order_id="3")
        assert wrong.value.path == "$.amount"

    await in_thread(florin, work)


async def test_the_stream_goes_on_where_its_consumer_is(florin: Server) -> None:
    async with AsyncFlorin(florin.api_url, florin.demo.api_key) as client:
        for number in range(5):
            await client.create(amount=100 + number, currency="EUR", order_id=str(number), confirm=True, token="tok_paid")

        async def take(count: int, **position: Any) -> list[Event]:
            found: list[Event] = []
            async with aclosing(client.stream(**position)) as events:
                async for event in events:
                    found.append(event)
                    if len(found) == count:
                        break
            return found

        everything = await take(5)
        assert [one.seq for one in everything] == [1, 2, 3, 4, 5]
        assert [one.seq for one in await take(2, after_seq=3)] == [4, 5]
        await client.stream(consumer="books").aclose()
        assert [one.seq for one in await take(1, after_seq=0, consumer="books")] == [1]
        await client.acknowledge("books", 4)
        assert [one.seq for one in await take(1, consumer="books")] == [5]
        with pytest.raises(Gap) as gap:
            await take(1, after_seq=99)
        assert gap.value.seq == 5

    def work(florin: Florin) -> list[int]:
        events = florin.stream(after_seq=2)
        return [next(events).seq for _ in range(3)]

    assert await in_thread(florin, work) == [3, 4, 5]


async def test_a_webhook_is_verified_and_read(florin: Server) -> None:
    async with receiving() as receiver, AsyncFlorin(florin.api_url, florin.demo.api_key) as client:
        secret = (await add(florin, receiver))["secret"]
        payment = await client.create(amount=1, currency="EUR", order_id="1", confirm=True, token="tok_paid")
        delivered = (await receiver.until(1))[0]
    event = verify_webhook(secret, delivered.headers, delivered.body)
    assert (event.type, event.data["id"]) == ("payment.succeeded", payment.id)
    with pytest.raises(InvalidSignature):
        verify_webhook(secret, delivered.headers, delivered.body + b" ")
    with pytest.raises(InvalidSignature):
        verify_webhook(secret, {}, delivered.body)
    body = b"[]"
    signature = sign_standard([secret], message_id="m", timestamp=1, body=body)
    headers = {"Webhook-Id": "m", "Webhook-Timestamp": "1", "Webhook-Signature": signature}
    with pytest.raises(InvalidSignature, match="no event"):
        verify_webhook(secret, headers, body, now=1.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries are short."""
    monkeypatch.setattr(module, "wait_seconds", lambda tries, retry_after=None: 0.001)
    monkeypatch.setattr("server.merchant_client.calls.RETRY_SECONDS_MAX", 0.001)


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_comes_back_is_asked_again_with_the_same_key() -> None:
    keys: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        keys.append(dict(scope["headers"])[b"idempotency-key"])
        headers = [(b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"no proxy knows it" if len(keys) < 3 else _problem(503)})

    async with serving(app) as (_, port), AsyncFlorin(f"http://127.0.0.1:{port}", "k") as client:
        with pytest.raises(ApiError) as error:
            await client.create(amount=1, currency="EUR", order_id="1")
    assert error.value.status == 503
    assert len(keys) == 4
    assert len(set(keys)) == 1


@pytest.mark.usefixtures("impatient")
async def test_nobody_there() -> None:
    async with AsyncFlorin("http://127.0.0.1:1", "k") as client:
        with pytest.raises(FlorinUnavailable) as error:
            await client.create(amount=1, currency="EUR", order_id="1", idempotency_key="mine")
    assert error.value.idempotency_key == "mine"


def _problem(status: int) -> bytes:
    return b'{"type": "t", "title": "t", "status": %d, "detail": "d", "code": "overloaded", "request_id": "r"}' % status
