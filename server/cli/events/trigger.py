"""`florin trigger`: makes an event happen in the sandbox by doing what leads to it, to test a shop's integration."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import trio
import typer

from core.errors import FlorinError, Unprocessable
from core.ids import PAYMENT, decode_id
from server.cli.options import DataDirectory, demo_instance
from server.cli.output import Output
from server.db.connection import open_session
from server.db.roles import Role
from server.http.client.client import Client, open_client
from server.process.demo import Demo
from server.process.running import Running
from server.sandbox.intents import TOKENS

TIMEOUT_SECONDS = 20.0
CLEANUP_SECONDS = 3.0
AMOUNT_MINOR = 1_990
_PAID = next(iter(TOKENS))
_console = Output()


class NotTriggered(FlorinError):
    """The sandbox or the API did not do what was asked."""

    code = "not_triggered"


def command(
    event_type: Annotated[str, typer.Argument(help="The event type, e.g. payment.succeeded.", metavar="TYPE")],
    data_dir: DataDirectory = None,
) -> None:
    """Make an event happen for the demo merchant of the running instance."""
    do = WAYS.get(event_type)
    if do is None:
        raise Unprocessable(f"{event_type!r} cannot be triggered: expected one of {', '.join(sorted(WAYS))}")
    running, demo = demo_instance(data_dir)
    event = trio.run(_trigger, running, demo, event_type, do)
    _console.print(f"no. {event['seq']}  {event['type']}  {event['data'].get('id')}")


@dataclass(frozen=True, slots=True)
class Shop:
    """The acts of a shop on the API, and of a person on the sandbox."""

    running: Running
    demo: Demo
    http: Client

    async def ask(self, method: str, path: str, body: Any = None, *, expect: tuple[int, ...] = (200, 201, 202)) -> dict[str, Any]:
        """Request something of the API. Raises `NotTriggered` for an unexpected answer."""
        headers = [("authorization", f"Bearer {self.demo.api_key}"), ("idempotency-key", uuid4().hex)]
        url = f"{self.running.api_urls[0]}/v1/{path}"
        response = await self.http.request(
            method, url, headers=headers, body=msgspec.json.encode(body) if body is not None else b""
        )
        if response.status not in expect:
            raise NotTriggered(
                f"{method} /v1/{path} answered {response.status}: {response.body[:500].decode('utf-8', 'replace')}"
            )
        answer: dict[str, Any] = msgspec.json.decode(response.body)
        return answer

    async def charge(self, token: str = _PAID, *, expect: tuple[int, ...] = (201,), **fields: object) -> str:
        """Charge a token and return the payment's id."""
        wanted = {"amount": AMOUNT_MINOR, "currency": "EUR", "order_id": f"trigger-{uuid4().hex[:8]}", **fields}
        answer = await self.ask("POST", "payments", {"confirm": True, "token": token, **wanted}, expect=expect)
        return str(answer.get("payment", answer)["id"])

    async def at_psp(self, **wanted: object) -> None:
        """Let the sandbox PSP act by itself."""
        url = f"{self.running.psp_url}/control"
        response = await self.http.request("POST", url, body=msgspec.json.encode(wanted))
        if response.status != 200:
            raise NotTriggered(f"the sandbox answered {response.status}: {response.body[:500].decode('utf-8', 'replace')}")

    async def reference(self, payment: str) -> str:
        """The PSP's reference of a payment."""
        async with open_session(self.running.database_url, role=Role.READ) as connection:
            rows = await connection.query("SELECT reference FROM payment_requests WHERE id = $1", decode_id(PAYMENT, payment))
        return str(rows[0][0])


async def _succeed(shop: Shop) -> None:
    await shop.charge()


async def _decline(shop: Shop) -> None:
    await shop.charge("tok_declined", expect=(402,))


async def _authorize(shop: Shop) -> None:
    await shop.charge(capture="manual")


async def _cancel(shop: Shop) -> None:
    payment = await shop.charge(capture="manual")
    await shop.ask("POST", f"payments/{payment}/cancel")


async def _expire(shop: Shop) -> None:
    wanted = {"amount": AMOUNT_MINOR, "currency": "EUR", "order_id": f"trigger-{uuid4().hex[:8]}", "expires_in": 1}
    await shop.ask("POST", "payments", wanted)


async def _refund(shop: Shop) -> None:
    payment = await shop.charge()
    await shop.ask("POST", f"payments/{payment}/refunds", {"amount": 400})


async def _fail_refund(shop: Shop) -> None:
    payment = await shop.charge()
    await shop.at_psp(refunds_end_as="failed")
    try:
        await shop.ask("POST", f"payments/{payment}/refunds", {"amount": 400})
    finally:
        with trio.move_on_after(CLEANUP_SECONDS, shield=True):
            await shop.at_psp(refunds_end_as="succeeded")


async def _dispute(shop: Shop, end: str | None = None) -> None:
    intent = await shop.reference(await shop.charge())
    for one in ("opened", end):
        if one is not None:
            await shop.at_psp(dispute=intent, amount_minor=AMOUNT_MINOR, **{"as": one})


async def _win(shop: Shop) -> None:
    await _dispute(shop, "won")


async def _lose(shop: Shop) -> None:
    await _dispute(shop, "lost")


async def _test(shop: Shop) -> None:
    endpoints = (await shop.ask("GET", "webhook-endpoints"))["data"]
    enabled = [one["id"] for one in endpoints if one["enabled"]]
    if not enabled:
        raise NotTriggered("the demo merchant has no webhook endpoint that is enabled")
    await shop.ask("POST", f"webhook-endpoints/{enabled[0]}/test")


WAYS: dict[str, Callable[[Shop], Awaitable[None]]] = {
    "payment.succeeded": _succeed,
    "payment.declined": _decline,
    "payment.authorized": _authorize,
    "payment.canceled": _cancel,
    "payment.expired": _expire,
    "payment.disputed": _dispute,
    "payment.dispute_won": _win,
    "payment.dispute_lost": _lose,
    "refund.succeeded": _refund,
    "refund.failed": _fail_refund,
    "webhook_endpoint.test": _test,
}


async def _trigger(running: Running, demo: Demo, event_type: str, do: Callable[[Shop], Awaitable[None]]) -> dict[str, Any]:
    async with open_client() as http:
        shop = Shop(running, demo, http)
        before = await shop.ask("GET", "events?after=9223372036854775807")  # shows where the sequence stands
        await do(shop)
        with trio.move_on_after(TIMEOUT_SECONDS):
            seq = before["seq"]
            while True:
                page = await shop.ask("GET", f"events?after={seq}&types={event_type}&wait=5")
                if page["data"]:
                    event: dict[str, Any] = page["data"][0]
                    return event
                seq = page["seq"]
        raise NotTriggered(f"no {event_type} came within {TIMEOUT_SECONDS:g} s")
