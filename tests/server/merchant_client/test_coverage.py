"""The merchants' client covers the whole API: every route of the OpenAPI document is called, by both clients."""

import re
from contextlib import aclosing
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import httpx2
import msgspec
import pytest
import trio

import florin_client
from florin_client import ApiError, AsyncFlorin, Florin, NewItem
from florin_client import resources as client_resources
from server import resources
from server.db.ledger.wallets import Wallet
from server.db.payments.log import Log
from server.flows.ledger.account_statement import COLUMNS
from tests.support.florin import Florin as Server
from tests.support.receiver import Receiver, receiving
from tests.support.webhooks import add

TOKEN: Any = {"amount": 1_990, "currency": "EUR", "token": "tok_paid"}


class Recording:
    """The requests of a client."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    def note(self, request: httpx2.Request) -> None:
        """Record a request."""
        self.seen.add((request.method, request.url.path))

    async def note_later(self, request: httpx2.Request) -> None:
        """Record a request of the async client."""
        self.note(request)


async def test_the_async_client_covers_the_whole_api(florin: Server) -> None:
    recording = Recording()
    async with AsyncFlorin(florin.api_url, florin.demo.api_key) as client, receiving() as receiver:
        client._transport._http.event_hooks = {"request": [recording.note_later]}
        await _use_payments(client)
        await _use_batches(client)
        await _use_events(client)
        (key,) = await client.api_keys.list()
        assert (await client.api_keys.rotate(key.id)).secret.startswith("fl_test_")
        endpoint = await add(florin, receiver)
        await _use_webhooks(client, receiver, endpoint["id"])
    await _require_all_called(florin, recording)


async def test_the_blocking_client_covers_the_whole_api(florin: Server) -> None:
    """It is generated from the other one; here each of its calls is made once."""
    recording = Recording()

    def work(endpoint_id: str) -> None:
        with Florin(florin.api_url, florin.demo.api_key) as client:
            client._transport._http.event_hooks = {"request": [recording.note]}
            _block_on_payments(client)
            _block_on_the_rest(client, endpoint_id)

    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        await trio.to_thread.run_sync(work, endpoint["id"])
    await _require_all_called(florin, recording)


async def _require_all_called(florin: Server, recording: Recording) -> None:
    document = (await florin.http.get(f"{florin.api_url}/openapi.json")).json()
    missed = [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if not any(
            method.upper() == called and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), at) for called, at in recording.seen
        )
    ]
    assert missed == []


async def _use_payments(client: AsyncFlorin) -> None:
    page = await client.payments.create(amount=500, currency="EUR", order_id="page", metadata={"cart": "7"}, expires_in=600)
    assert (page.status, page.metadata) == ("PENDING", {"cart": "7"})
    assert (await client.payments.cancel(page.id)).status == "CANCELED"
    held = await client.payments.create(**TOKEN, order_id="held", capture="manual")
    assert held.status == "AUTHORIZED"
    taken = await client.payments.capture(held.id, amount=1_000)
    assert (taken.status, taken.captured_amount) == ("SUCCEEDED", 1_000)
    refund = await client.payments.refund(taken.id, amount=100)
    assert await client.payments.refunds(taken.id) == (refund,)
    assert await client.payments.get_refund(taken.id, refund.id) == refund
    assert (await client.payments.verify(taken.id)).refunded_amount == 100
    assert (await client.payments.get(taken.id, wait_seconds=1)).id == taken.id
    assert [one.id async for one in client.payments.list(order_id="held")] == [held.id]
    assert (await client.payments.logs(taken.id))[-1].to_status == "SUCCEEDED"
    assert (await client.payments.receipt(taken.id)).count(".") == 2
    assert (await client.ledger.receipt_keys())["keys"][0]["crv"] == "Ed25519"
    assert [(one.kind, one.balance) for one in await client.ledger.wallets()] == [("available", 900)]
    assert [one.amount async for one in client.ledger.statement(currency="EUR")] == [1_000, -100]
    with pytest.raises(ApiError, match="not a currency"):
        async for _ in client.ledger.statement(currency="ABC"):
            pass


async def _use_batches(client: AsyncFlorin) -> None:
    items: list[NewItem] = [
        {"type": "charge", "amount": 100, "currency": "EUR", "order_id": "a", "token": "tok_paid"},
        {"type": "charge", "amount": 200, "currency": "EUR", "order_id": "b", "token": "tok_declined"},
    ]
    report = await client.batches.run(items, deadline_seconds=60, idempotency_key="batch")
    assert [one.status for one in report.items] == ["SUCCEEDED", "DECLINED"]
    assert (await client.batches.run(items, deadline_seconds=60, idempotency_key="batch")).id == report.id
    running = await client.batches.submit([{"type": "verify", "payment_id": str(report.items[0].payment_id)}], concurrency=2)
    await client.batches.stop(running.id)
    ended = await client.batches.get(running.id, wait_seconds=10)
    assert ended.status in ("COMPLETED", "STOPPED")
    assert {one.id async for one in client.batches.list()} == {report.id, running.id}
    assert len([one async for one in client.batches.items(report.id)]) == 2
    with pytest.raises(ApiError) as refused:
        await client.batches.resume(report.id, "none")
    assert refused.value.status in (409, 422)


async def _use_events(client: AsyncFlorin) -> None:
    async with aclosing(client.events.stream(after_seq=0)) as events:
        first = await anext(events)
    assert await client.events.get(first.seq) == first
    await client.consumers.acknowledge("books", first.seq)
    assert [(one.name, one.acked_seq) for one in await client.consumers.list()] == [("books", first.seq)]
    await client.consumers.delete("books")
    ticket = await client.events.create_ticket(origin="https://shop.example", event_types=["payment.*"])
    assert ticket.ticket in ticket.url


async def _use_webhooks(client: AsyncFlorin, receiver: Receiver, endpoint_id: str) -> None:
    endpoints = client.webhook_endpoints
    made = await endpoints.create(url=receiver.url, event_types=["payment.succeeded"], concurrency_max=4)
    assert made.secret.startswith("whsec_")
    changed = await endpoints.update(made.id, enabled=False, requests_per_second_max=None)
    assert not changed.enabled
    assert (await endpoints.rotate_secret(made.id, overlap_seconds=60)).secret != made.secret
    assert {one.id for one in await endpoints.list()} >= {made.id, endpoint_id}
    await endpoints.delete(made.id)
    event = await endpoints.test(endpoint_id)
    await receiver.until(1)
    assert (await endpoints.get(endpoint_id)).enabled
    assert [one.seq async for one in endpoints.deliveries(endpoint_id)] == [event.seq]
    assert (await endpoints.delivery(endpoint_id, event.seq)).request.body["id"] == event.id
    assert await endpoints.resend(endpoint_id, event.seq) == 1
    assert await endpoints.replay(endpoint_id, from_seq=event.seq) in (0, 1)  # 0 while it is still waiting to be sent
    assert [one async for one in client.dead_letters.list(endpoint_id=endpoint_id)] == []
    assert (await client.dead_letters.retry(endpoint_id=endpoint_id), await client.dead_letters.drop()) == (0, 0)


def _block_on_payments(client: Florin) -> None:
    page = client.payments.create(amount=500, currency="EUR", order_id="page")
    client.payments.cancel(page.id)
    held = client.payments.create(**TOKEN, order_id="held", capture="manual")
    taken = client.payments.capture(held.id)
    refund = client.payments.refund(taken.id, amount=100)
    assert client.payments.refunds(taken.id) == (refund,)
    assert client.payments.get_refund(taken.id, refund.id) == refund
    assert client.payments.verify(taken.id) == client.payments.get(taken.id)
    assert len(list(client.payments.list())) == 2
    assert len(client.payments.logs(taken.id)) >= 2
    assert client.payments.receipt(taken.id)
    assert client.ledger.receipt_keys()
    assert client.ledger.wallets()[0].balance == 1_890
    assert len(list(client.ledger.statement())) == 2
    with pytest.raises(ApiError, match="not a currency"):
        list(client.ledger.statement(currency="ABC"))


def _block_on_the_rest(client: Florin, endpoint_id: str) -> None:
    report = client.batches.run([{"type": "charge", "amount": 100, "currency": "EUR", "order_id": "a", "token": "tok_paid"}])
    assert report.status == "COMPLETED"
    client.batches.stop(client.batches.submit([{"type": "verify", "payment_id": str(report.items[0].payment_id)}]).id)
    assert len(list(client.batches.list())) == 2
    assert [one.item for one in client.batches.items(report.id)] == [1]
    assert client.batches.get(report.id).outcomes["SUCCEEDED"] == 1
    with pytest.raises(ApiError):
        client.batches.resume(report.id, "none")
    assert client.events.get(1).seq == next(client.events.stream(after_seq=0)).seq
    client.consumers.acknowledge("books", 1)
    assert len(client.consumers.list()) == 1
    client.consumers.delete("books")
    client.events.create_ticket(origin="https://shop.example")
    assert client.api_keys.rotate(client.api_keys.list()[0].id, overlap_seconds=3_600).scopes == ["all"]
    endpoints = client.webhook_endpoints
    made = endpoints.create(url=endpoints.get(endpoint_id).url, mode="ordered")
    assert endpoints.update(made.id, enabled=False) == endpoints.get(made.id)
    endpoints.rotate_secret(made.id)
    assert len(endpoints.list()) == 3
    endpoints.delete(made.id)
    event = endpoints.test(endpoint_id)
    assert next(endpoints.deliveries(endpoint_id)).seq == event.seq
    assert endpoints.delivery(endpoint_id, event.seq).event_id == event.id
    assert endpoints.resend(endpoint_id, event.seq) == 1
    assert endpoints.replay(endpoint_id, from_seq=event.seq) in (0, 1)  # 0 while it is still waiting to be sent
    assert (list(client.dead_letters.list()), client.dead_letters.retry(), client.dead_letters.drop()) == ([], 0, 0)


SERVED: dict[str, Any] = {name: getattr(resources, name) for name in resources.__all__} | {"Wallet": Wallet, "Log": Log}
SECRET = "secret"
"""The only field that some replies lack; the client has a type of its own with it."""
TYPES = [getattr(florin_client, name) for name in florin_client.__all__ if hasattr(client_resources, name)]


@pytest.mark.parametrize("kind", [one for one in TYPES if hasattr(one, "__dataclass_fields__")], ids=lambda one: one.__name__)
def test_the_clients_types_are_the_servers(kind: Any) -> None:
    if kind.__name__ == "Movement":
        assert tuple(field.name for field in fields(kind)) == COLUMNS
        return
    served = get_type_hints(SERVED[kind.__name__.removesuffix("WithSecret")])
    if kind.__name__.endswith("WithSecret"):
        served[SECRET] = str
    else:
        served.pop(SECRET, None)
    assert {name: _plain(hint) for name, hint in get_type_hints(kind).items()} == {
        name: _plain(hint) for name, hint in served.items()
    }


def test_every_document_of_the_api_has_a_type() -> None:
    """Except for pages, which the client iterates, problems, which it raises, and the data of an event."""
    internal = {
        "Accepted",
        "BatchItemPage",
        "BatchState",
        "EndpointState",
        "EventPage",
        "ItemProblem",
        "Page",
        "Problem",
        "Whole",
    }
    assert set(SERVED) - internal <= set(florin_client.__all__)


def _plain(hint: Any) -> str:
    """A type as text: the two sides have classes of their own, and unset is None here."""
    parts = get_args(hint)
    if msgspec.UnsetType in parts:
        parts = tuple(NoneType if one is msgspec.UnsetType else one for one in parts)
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(sorted(_plain(one) for one in parts))
    text = repr(hint) if parts else getattr(hint, "__name__", repr(hint))
    return re.sub(r"(server\.resources|florin_client)\.(\w+\.)*", "", text)
