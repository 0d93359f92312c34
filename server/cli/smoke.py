"""`florin smoke`: six typical payments through the running instance, and a check of every promise afterwards.

Paid; declined, then paid by another card; abandoned and expired; clicked twice; authorized, captured in part and refunded;
authorized and voided. Everything goes over HTTP as a customer and a merchant would do it; the trail of each payment is read from
the database.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import msgspec
import trio
import typer

from core.errors import FlorinError
from core.ids import PAYMENT, PaymentId, decode_id
from server.cli.doctor import print_diagnosis
from server.cli.explain import print_timeline
from server.cli.options import DataDirectory, demo_instance
from server.cli.output import Output
from server.db.connection import Connection, open_session
from server.db.doctor.run import broken_promises
from server.db.payments.payments import find_owner
from server.db.payments.timeline import Entry, timeline
from server.db.roles import Role
from server.http.client.client import Client, open_client
from server.http.client.response import Response
from server.process.demo import Demo
from server.process.running import Running
from server.sandbox.intents import PAID_CARD, REFUSED_CARDS, TOKENS

TIMEOUT_SECONDS = 20.0
POLL_SECONDS = 0.1
_console = Output()


class SmokeFailed(FlorinError):
    """Something did not happen as expected."""

    code = "smoke_failed"


def command(data_dir: DataDirectory = None) -> None:
    """Take six typical payments and check every promise; exit code 0 only if everything passes."""
    running, demo = demo_instance(data_dir)
    if not trio.run(_smoke, running, demo):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Customer:
    """The acts of a shop and its customer."""

    running: Running
    demo: Demo
    http: Client

    async def create(self, *, key: str, expires_in: int = 600) -> Response:
        """Request a payment, as a shop does."""
        headers = [("authorization", f"Bearer {self.demo.api_key}"), ("idempotency-key", key)]
        wanted = {"amount": 1_990, "currency": "EUR", "order_id": f"smoke-{key[:8]}", "expires_in": expires_in}
        url = f"{self.running.api_urls[0]}/v1/payments"
        return await self.http.request("POST", url, headers=headers, body=msgspec.json.encode(wanted))

    async def open(self, *, expires_in: int = 600) -> dict[str, Any]:
        """A new payment with its page. Raises `SmokeFailed`."""
        response = await self.create(key=uuid4().hex, expires_in=expires_in)
        _require(response.status == 201, f"POST /v1/payments answered {response.status}: {response.body.decode()}")
        payment: dict[str, Any] = msgspec.json.decode(response.body)
        return payment

    async def ask(self, path: str, **wanted: object) -> dict[str, Any]:
        """Make another request, as a shop does. Raises `SmokeFailed`."""
        headers = [("authorization", f"Bearer {self.demo.api_key}"), ("idempotency-key", uuid4().hex)]
        url = f"{self.running.api_urls[0]}/v1/{path}"
        response = await self.http.request("POST", url, headers=headers, body=msgspec.json.encode(wanted))
        _require(response.status in (200, 201), f"POST /v1/{path} answered {response.status}: {response.body.decode()}")
        answer: dict[str, Any] = msgspec.json.decode(response.body)
        return answer

    async def pay(self, payment: dict[str, Any], card: str) -> Response:
        """Submit the form of the payment page."""
        form = urlencode({"card": card}).encode()
        headers = [("content-type", "application/x-www-form-urlencoded")]
        return await self.http.request("POST", payment["payment_url"], headers=headers, body=form)

    async def until(self, payment_id: str, status: str) -> None:
        """Wait until the shop has received the status, and read the payment. Raises `SmokeFailed`."""
        headers = [("authorization", f"Bearer {self.demo.api_key}")]
        event_type = f"payment.{status.lower()}"
        told, seen = False, "not read"
        with trio.move_on_after(TIMEOUT_SECONDS):
            while not told:
                events = msgspec.json.decode((await self.http.request("GET", f"{self.running.shop_url}/events")).body)
                told = any(event["type"] == event_type and event["data"]["id"] == payment_id for event in events)
                await trio.sleep(POLL_SECONDS)
            url = f"{self.running.api_urls[0]}/v1/payments/{payment_id}"
            seen = msgspec.json.decode((await self.http.request("GET", url, headers=headers)).body).get("status")
        if told and seen == status:
            return
        raise SmokeFailed(f"{payment_id} is {seen}, not {status}; the shop was {'notified' if told else 'not notified'}")


async def _paid(customer: Customer) -> str:
    payment = await customer.open()
    await customer.pay(payment, PAID_CARD)
    await customer.until(payment["id"], "SUCCEEDED")
    return str(payment["id"])


async def _declined_then_paid(customer: Customer) -> str:
    payment = await customer.open()
    refused = await customer.pay(payment, next(iter(REFUSED_CARDS)))
    _require(refused.status == 402, f"the refused card was answered with {refused.status}")
    await customer.pay(payment, PAID_CARD)
    await customer.until(payment["id"], "SUCCEEDED")
    return str(payment["id"])


async def _abandoned(customer: Customer) -> str:
    payment = await customer.open(expires_in=1)
    await customer.until(payment["id"], "EXPIRED")
    late = await customer.pay(payment, PAID_CARD)
    _require(b"can no longer be made" in late.body, "an expired payment could still be paid")
    return str(payment["id"])


async def _clicked_twice(customer: Customer) -> str:
    key = uuid4().hex
    replies: list[Response] = []

    async def click() -> None:
        while True:
            response = await customer.create(key=key)
            if response.status != 409:
                break
            await trio.sleep(float(response.header(b"retry-after") or 1))
        replies.append(response)

    with trio.move_on_after(TIMEOUT_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(click)
            nursery.start_soon(click)
    payments = {msgspec.json.decode(reply.body).get("id") for reply in replies if reply.status == 201}
    _require(len(replies) == 2 and len(payments) == 1, f"two clicks made {len(payments)} payments")
    payment = msgspec.json.decode(replies[0].body)
    await customer.pay(payment, PAID_CARD)
    await customer.pay(payment, PAID_CARD)
    await customer.until(payment["id"], "SUCCEEDED")
    return str(payment["id"])


async def _captured_and_refunded(customer: Customer) -> str:
    payment = await _authorized(customer)
    captured = await customer.ask(f"payments/{payment}/capture", amount=1_000)
    _require(captured["captured_amount"] == 1_000, "the capture took another amount than requested")
    refund = await customer.ask(f"payments/{payment}/refunds", amount=400)
    _require(refund["status"] == "SUCCEEDED", f"the refund is {refund['status']}")
    await customer.until(payment, "SUCCEEDED")
    return payment


async def _voided(customer: Customer) -> str:
    payment = await _authorized(customer)
    await customer.ask(f"payments/{payment}/cancel")
    await customer.until(payment, "CANCELED")
    return payment


async def _authorized(customer: Customer) -> str:
    wanted = {"amount": 1_990, "currency": "EUR", "order_id": f"smoke-{uuid4().hex[:8]}"}
    payment = await customer.ask("payments", **wanted, confirm=True, token=next(iter(TOKENS)), capture="manual")
    _require(payment["status"] == "AUTHORIZED", f"the payment is {payment['status']}")
    return str(payment["id"])


OUTCOMES: dict[str, Callable[[Customer], Awaitable[str]]] = {
    "paid": _paid,
    "declined, then paid by another card": _declined_then_paid,
    "abandoned and expired": _abandoned,
    "clicked twice": _clicked_twice,
    "authorized, captured in part, refunded": _captured_and_refunded,
    "authorized and voided": _voided,
}


async def _smoke(running: Running, demo: Demo) -> bool:
    failures = 0
    async with open_client() as http, open_session(running.database_url, role=Role.READ) as connection:
        customer = Customer(running, demo, http)
        for name, outcome in OUTCOMES.items():
            _console.heading(name)
            try:
                await _print_trail(connection, await outcome(customer))
            except FlorinError as error:
                failures += 1
                _console.print(f"FAILED  {error}")
        _console.heading("promises")
        violations = await broken_promises(connection)
    print_diagnosis(violations, _console)
    _console.print(f"smoke: {len(OUTCOMES) - failures} of {len(OUTCOMES)} outcomes as expected")
    return not failures and not violations


async def _print_trail(connection: Connection, payment_text: str) -> None:
    payment_id = PaymentId(decode_id(PAYMENT, payment_text))
    owner = await find_owner(connection, payment_id)
    _require(owner is not None, f"{payment_text} is not in the database")
    assert owner is not None
    entries: list[Entry] = []
    with trio.move_on_after(TIMEOUT_SECONDS):
        # The shop is notified before the result is written: wait for the delivery's own row.
        while not any("DELIVERED" in entry.what for entry in entries):
            entries = await timeline(connection, owner, payment_id)
            await trio.sleep(POLL_SECONDS)
    _console.print(payment_text)
    print_timeline(entries, _console)


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SmokeFailed(otherwise)
