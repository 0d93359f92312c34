"""The merchants' client against a real server: requests, retries, exceptions, streams and webhooks."""

import json
import pickle
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
import trio

import florin_client._async.transport
import florin_client._blocking.transport
from core.signing import StandardKey, sign_standard
from florin_client import (
    ApiError,
    AsyncFlorin,
    Event,
    Florin,
    FlorinError,
    FlorinUnavailable,
    Gap,
    InvalidSignature,
    verify_webhook,
)
from tests.support.florin import Florin as Server
from tests.support.http import serving
from tests.support.receiver import receiving
from tests.support.webhooks import add

T = TypeVar("T")
E = TypeVar("E", bound=FlorinError)


async def in_thread(florin: Server, work: Callable[[Florin], T]) -> T:
    """Use the blocking client outside the event loop, as its users do."""

    def use() -> T:
        with Florin(florin.api_url, florin.demo.api_key) as client:
            return work(client)

    return await trio.to_thread.run_sync(use)


async def test_create_get_and_refund_without_an_event_loop(florin: Server) -> None:
    order: Any = {"amount": 1_990, "currency": "EUR", "order_id": "1", "token": "tok_paid"}

    def work(client: Florin) -> None:
        payment = client.payments.create(**order, idempotency_key="k")
        assert payment.status == "SUCCEEDED"
        again = client.payments.create(**order, idempotency_key="k")
        assert again == payment
        refunded = client.payments.refund(payment.id, amount=400, reason="returned")
        assert (refunded.status, refunded.amount) == ("SUCCEEDED", 400)
        assert client.payments.get(payment.id).refunded_amount == 400
        with pytest.raises(ApiError) as declined:
            client.payments.create(amount=1, currency="EUR", order_id="2", token="tok_declined")
        assert (declined.value.status, declined.value.code) == (402, "declined")
        assert declined.value.payment is not None
        assert declined.value.payment.status == "DECLINED"
        with pytest.raises(ApiError) as missing:
            client.payments.get("pay_nothing")
        assert missing.value.code == "not_found"
        with pytest.raises(ApiError) as wrong:
            client.payments.create(amount=-1, currency="EUR", order_id="3")
        assert wrong.value.path == "$.amount"

    await in_thread(florin, work)


async def test_the_stream_continues_at_its_consumers_position(florin: Server) -> None:
    async with AsyncFlorin(florin.api_url, florin.demo.api_key) as client:
        for number in range(5):
            await client.payments.create(amount=100 + number, currency="EUR", order_id=str(number), token="tok_paid")

        async def take(count: int, **position: Any) -> list[Event]:
            found: list[Event] = []
            async with aclosing(client.events.stream(**position)) as events:
                async for event in events:
                    found.append(event)
                    if len(found) == count:
                        break
            return found

        everything = await take(5)
        assert [one.seq for one in everything] == [1, 2, 3, 4, 5]
        assert [one.seq for one in await take(2, after_seq=3)] == [4, 5]
        await client.events.stream(consumer="books").aclose()
        assert [one.seq for one in await take(1, after_seq=0, consumer="books")] == [1]
        await client.consumers.acknowledge("books", 4)
        assert [one.seq for one in await take(1, consumer="books")] == [5]
        with pytest.raises(Gap) as gap:
            await take(1, after_seq=99)
        assert gap.value.seq == 5

    def work(florin: Florin) -> list[int]:
        events = florin.events.stream(after_seq=2)
        return [next(events).seq for _ in range(3)]

    assert await in_thread(florin, work) == [3, 4, 5]


async def test_a_webhook_is_verified_and_read(florin: Server) -> None:
    async with receiving() as receiver, AsyncFlorin(florin.api_url, florin.demo.api_key) as client:
        secret = (await add(florin, receiver))["secret"]
        payment = await client.payments.create(amount=1, currency="EUR", order_id="1", token="tok_paid")
        delivered = (await receiver.until(1))[0]
    event = verify_webhook(secret, delivered.headers, delivered.body)
    assert (event.type, event.data["id"]) == ("payment.succeeded", payment.id)
    with pytest.raises(InvalidSignature):
        verify_webhook(secret, delivered.headers, delivered.body + b" ")
    with pytest.raises(InvalidSignature):
        verify_webhook(secret, {}, delivered.body)
    for empty in ("", "whsec_", [secret, ""], "whsec_é"):
        with pytest.raises(ValueError, match="webhook secret"):
            verify_webhook(empty, delivered.headers, delivered.body)
    assert verify_webhook([secret], delivered.headers, delivered.body.decode()) == event
    with pytest.raises(InvalidSignature):
        verify_webhook(secret, {**delivered.headers, "webhook-id": "\ud800"}, delivered.body)
    body = b"[]"
    signature = sign_standard([StandardKey(secret)], message_id="m", timestamp=1, body=body)
    headers = {"Webhook-Id": "m", "Webhook-Timestamp": "1", "Webhook-Signature": signature}
    with pytest.raises(InvalidSignature, match="not an event"):
        verify_webhook(secret, headers, body, now=1.0)


@pytest.fixture
def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits between tries."""
    for module in (florin_client._async.transport, florin_client._blocking.transport):
        monkeypatch.setattr(module, "wait_seconds", lambda tries, retry_after=None: 0.001)
    monkeypatch.setattr("florin_client._requests.RETRY_SECONDS", (0.001,))
    monkeypatch.setattr("florin_client._requests.RETRY_SECONDS_MAX", 0.001)


class Fake:
    """A server that gives these replies in turn, the last one again and again, and keeps what it was asked."""

    def __init__(self, *replies: tuple[int, dict[bytes, bytes], bytes]) -> None:
        self.replies = list(replies)
        self.keys: list[bytes | None] = []
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        await receive()
        self.keys.append(dict(scope["headers"]).get(b"idempotency-key"))
        self.paths.append(scope["path"])
        status, headers, body = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
        await send({"type": "http.response.body", "body": body})


async def refusal(fake: Fake, kind: type[E], **more: Any) -> E:
    """The exception of a payment that is created at the fake."""
    async with serving(fake) as (_, port), AsyncFlorin(f"http://127.0.0.1:{port}", "k") as client:
        with pytest.raises(kind) as error:
            await client.payments.create(amount=1, currency="EUR", order_id="1", **more)
    return error.value


@pytest.mark.usefixtures("without_waits")
async def test_a_server_that_comes_back_is_asked_again_with_the_same_key() -> None:
    later = {b"retry-after": b"1"}
    fake = Fake((503, later, b"from a proxy"), (500, {}, problem(500)), (503, later, problem(503)))
    error = await refusal(fake, ApiError)
    assert error.status == 503
    assert len(fake.keys) == 4
    assert {str(error.idempotency_key).encode()} == set(fake.keys)


@pytest.mark.usefixtures("without_waits")
async def test_a_request_in_flight_is_waited_for() -> None:
    """However many tries that takes: giving up would invite a second charge under a new key."""
    in_flight = (409, {b"retry-after": b"1"}, problem(409, code="idempotency_key_in_flight"))
    fake = Fake(*[in_flight] * 9, (402, {}, problem(402, code="declined")))
    assert (await refusal(fake, ApiError, idempotency_key="mine")).code == "declined"
    assert fake.keys == [b"mine"] * 10


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize(("status", "calls"), [("UNKNOWN", 1), ("PENDING", 4)])
async def test_a_known_outcome_is_not_asked_for_again(florin: Server, status: str, calls: int) -> None:
    payment = {**await florin.create(), "status": status}
    fake = Fake((504, {}, problem(504, payment=payment)))
    error = await refusal(fake, ApiError)
    assert error.payment is not None
    assert (error.payment.status, len(fake.keys)) == (status, calls)


@pytest.mark.usefixtures("without_waits")
async def test_documents_of_other_versions(florin: Server) -> None:
    """A missing optional field is None; a payment in a problem that cannot be read does not hide the problem."""
    older = {name: value for name, value in (await florin.create()).items() if name != "risk"}
    fake = Fake((201, {}, json.dumps(older | {"status": "NEW", "new": [1]}).encode()))
    async with serving(fake) as (_, port), AsyncFlorin(f"http://127.0.0.1:{port}", "k") as client:
        payment = await client.payments.get("pay_1")
    assert (payment.risk, str(payment.status)) == (None, "NEW")
    assert (await refusal(Fake((402, {}, problem(402, payment={"id": "pay_1"}))), ApiError)).payment is None
    for body in (b"[]", b'{"data": 1}', b"{", b"[" * 100_000):
        assert (await refusal(Fake((201, {}, body)), FlorinUnavailable, idempotency_key="mine")).idempotency_key == "mine"


@pytest.mark.usefixtures("without_waits")
async def test_a_batch_that_cannot_be_followed_keeps_its_key() -> None:
    running = {"id": "bat_1", "object": "batch", "status": "RUNNING", "count": 1, "unfinished": 1, "outcomes": {}, "run": 1}
    times = dict.fromkeys(("deadline_at", "created_at", "started_at"), "2026-11-26T00:00:00Z")
    batch = {**running, **times, "concurrency": 1, "deadline_seconds": 5}
    fake = Fake((202, {}, json.dumps(batch).encode()), (500, {}, problem(500)))
    async with serving(fake) as (_, port), AsyncFlorin(f"http://127.0.0.1:{port}", "k") as client:
        with pytest.raises(FlorinUnavailable) as error:
            await client.batches.run([{"type": "verify", "payment_id": "pay_1"}], idempotency_key="mine")
    assert error.value.idempotency_key == "mine"


async def test_a_missed_event_is_a_gap_for_a_consumer_too() -> None:
    event = {"id": "evt_1", "type": "t", "seq": 7, "api_version": "v", "timestamp": "2026-11-26T00:00:00Z", "data": {}}
    page = {"data": [event], "seq": 7, "has_more": False, "recovered": False, "epoch": "e"}
    fake = Fake((200, {}, json.dumps(page).encode()))
    async with serving(fake) as (_, port), AsyncFlorin(f"http://127.0.0.1:{port}", "k") as client:
        with pytest.raises(Gap) as gap:
            await anext(client.events.stream(consumer="books"))
    assert gap.value.seq == 6, "the next stream begins with event 7"


def test_mistakes_are_found_before_anything_is_sent() -> None:
    for url in ("127.0.0.1:8080", "http://h\n", "ftp://h", "http://user:password@h", ""):
        with pytest.raises(ValueError, match="expected a URL"):
            Florin(url, "k")
    for api_key in ("", "fl_live_SECRET\n", "fl live"):
        with pytest.raises(ValueError, match="API key") as error:
            Florin("http://127.0.0.1:1", api_key)
        assert "SECRET" not in str(error.value)
    with Florin("http://127.0.0.1:1", "k") as client:
        for idempotency_key in ("", "a\nb", "a ", "ü", "k" * 256):
            with pytest.raises(ValueError, match="idempotency key"):
                client.payments.cancel("pay_1", idempotency_key=idempotency_key)
        for identifier in ("", "..", "a/b", "a%2Fb", "a b"):
            with pytest.raises(ValueError, match="expected an identifier"):
                client.payments.get(identifier)
        with pytest.raises(TypeError, match="sequence of names"):
            next(client.events.stream(event_types="payment.*"))


def test_exceptions_can_be_pickled() -> None:
    document = json.loads(problem(402))
    for error in (ApiError(402, document, None, "k"), FlorinUnavailable("away", "k"), Gap(1, 2), InvalidSignature("no")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.usefixtures("without_waits")
async def test_an_unreachable_server() -> None:
    async with AsyncFlorin("http://127.0.0.1:1", "k") as client:
        with pytest.raises(FlorinUnavailable) as error:
            await client.payments.create(amount=1, currency="EUR", order_id="1", idempotency_key="mine")
    assert error.value.idempotency_key == "mine"


def problem(status: int, *, code: str = "overloaded", **more: Any) -> bytes:
    """A problem document."""
    known = {"type": "t", "title": "t", "status": status, "detail": "d", "code": code, "request_id": "r"}
    return json.dumps({**known, **more}).encode()
