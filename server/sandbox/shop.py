"""The demo shop: an example of a merchant's integration, on Florin's public API only.

An order is a cart with one item. Its id is the idempotency key, so a customer who clicks twice pays once. The page after the
payment reads the payment from Florin and never trusts the browser. Webhooks are verified and deduplicated by their id.
"""

import time
from collections import OrderedDict
from typing import Any
from uuid import UUID, uuid4

import msgspec
import trio

from core.errors import InvalidSignature
from core.signing import verify_standard
from server.http.asgi import BodyTooLarge, ClientGone, Receive, Scope, Send, header, read_body, respond
from server.http.client.client import Client
from server.http.client.errors import ClientError
from server.http.client.response import Response
from server.sandbox.journal import Journal
from server.sandbox.pages import form, query, redirect, send_page

JSON = b"application/json"
BODY_BYTES_MAX = 65_536
FLORIN_SECONDS = 20.0
RETRIES_MAX = 10
EVENTS_MAX = 10_000
EVENTS_SHOWN = 50
REFRESH_SECONDS = 2
GOODS = {"coffee": ("A kilo of coffee", 1_990), "grinder": ("A hand grinder", 8_900), "cup": ("A cup", 750)}
CURRENCY = "EUR"


class Shop:
    """The application."""

    def __init__(
        self, http: Client, orders: Journal, *, florin_url: str, public_url: str, api_key: str, webhook_secret: str
    ) -> None:
        self._http = http
        self._orders = orders
        self._florin_url = florin_url
        self._public_url = public_url
        self._authorization = ("authorization", f"Bearer {api_key}")
        self._webhook_secret = webhook_secret
        self._events: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            body = await read_body(receive, bytes_max=BODY_BYTES_MAX)
        except BodyTooLarge:
            await respond(send, 413, b"", content_type=JSON)
            return
        except ClientGone:
            return
        match scope["method"], scope["path"].strip("/"):
            case "GET", "":
                carts = {item: uuid4().hex for item in GOODS}
                await send_page(send, "shop.html", goods=GOODS, currency=CURRENCY, carts=carts)
            case "POST", "checkout":
                await self._checkout(form(body), send)
            case "GET", "return":
                await self._returned(query(scope).get("cart", ""), send)
            case "POST", "webhooks":
                await self._webhook(scope, body, send)
            case "GET", "events":
                await self._show_events(send, is_page="text/html" in (header(scope, b"accept") or ""))
            case "GET", "healthz":
                await respond(send, 200, b'{"status":"ok"}', content_type=JSON)
            case _:
                await send_page(send, "missing.html", status=404)

    async def _checkout(self, fields: dict[str, str], send: Send) -> None:
        cart, item = fields.get("cart", ""), fields.get("item", "")
        if item not in GOODS or not _is_cart(cart):
            await send_page(send, "missing.html", status=404)
            return
        known = self._orders.entries.get(cart)
        if known is not None and known["item"] != item:
            await send_page(send, "sorry.html", status=409, reason="This order was placed with another item. Please start again.")
            return
        name, amount = GOODS[item]
        wanted = {
            "amount": amount,
            "currency": CURRENCY,
            "order_id": f"cart-{cart}",
            "description": name,
            "return_url": f"{self._public_url}/return?cart={cart}",
        }
        try:
            response = await self._create(wanted, key=cart)
        except (ClientError, trio.TooSlowError) as error:
            await send_page(send, "sorry.html", status=502, reason=str(error) or "no answer in time")
            return
        answer = msgspec.json.decode(response.body)
        if response.status != 201 or not answer.get("payment_url"):
            await send_page(send, "sorry.html", status=502, reason=answer.get("detail", "no payment page"))
            return
        self._orders.put(cart, {"payment_id": answer["id"], "item": item})
        await redirect(send, answer["payment_url"])

    async def _create(self, wanted: dict[str, Any], *, key: str) -> Response:
        """Create the payment. The second click of a double click waits for the first one's answer."""
        headers = [self._authorization, ("idempotency-key", key), ("content-type", "application/json")]
        with trio.fail_after(FLORIN_SECONDS):
            for _ in range(RETRIES_MAX):
                response = await self._http.request(
                    "POST", f"{self._florin_url}/v1/payments", headers=headers, body=msgspec.json.encode(wanted)
                )
                if response.status not in (409, 503):
                    break
                await trio.sleep(float(response.header(b"retry-after") or 1))
        return response

    async def _returned(self, cart: str, send: Send) -> None:
        order = self._orders.entries.get(cart)
        if order is None:
            await send_page(send, "missing.html", status=404)
            return
        try:
            with trio.fail_after(FLORIN_SECONDS):
                response = await self._http.request(
                    "GET", f"{self._florin_url}/v1/payments/{order['payment_id']}", headers=[self._authorization]
                )
            payment = msgspec.json.decode(response.body)
        except (ClientError, trio.TooSlowError, msgspec.DecodeError) as error:
            await send_page(send, "sorry.html", status=502, reason=str(error) or "no answer in time")
            return
        name = GOODS[order["item"]][0]
        await send_page(send, "return.html", payment=payment, name=name, refresh_seconds=REFRESH_SECONDS)

    async def _show_events(self, send: Send, *, is_page: bool) -> None:
        """All events for a program, the last ones for a browser."""
        events = list(self._events.values())
        if not is_page:
            await respond(send, 200, msgspec.json.encode(events), content_type=JSON)
            return
        newest = sorted(events, key=lambda event: event["seq"], reverse=True)[:EVENTS_SHOWN]
        await send_page(send, "events.html", events=newest, count=len(events), refresh_seconds=REFRESH_SECONDS)

    async def _webhook(self, scope: Scope, body: bytes, send: Send) -> None:
        message_id = header(scope, b"webhook-id") or ""
        try:
            verify_standard(
                [self._webhook_secret],
                message_id=message_id,
                timestamp=header(scope, b"webhook-timestamp") or "",
                signature=header(scope, b"webhook-signature") or "",
                body=body,
                now=time.time(),
            )
        except InvalidSignature as error:
            await respond(send, 400, msgspec.json.encode({"error": str(error)}), content_type=JSON)
            return
        event = msgspec.json.decode(body)
        copies = self._events.get(message_id, {}).get("copies", 0)
        self._events[message_id] = {**event, "copies": copies + 1}
        while len(self._events) > EVENTS_MAX:
            self._events.popitem(last=False)
        await respond(send, 200, b"{}", content_type=JSON)


def _is_cart(text: str) -> bool:
    try:
        return UUID(hex=text).hex == text
    except ValueError:
        return False
