"""The sandbox PSP over HTTP: an API for Florin, a hosted page for customers, a control API for tests.

API (Bearer key): POST /v1/intents, GET /v1/intents?operation_id=, GET /v1/intents/{id}, POST /v1/intents/{id}/close.
Customers: GET and POST /pay/{id}. Tests: POST /control with {"webhooks": "send"|"hold"|"release"} or
{"create": "answer"|"lose"|"hang"|"slow"}.
"""

import hmac
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import trio

from server.http.asgi import BodyTooLarge, ClientGone, Receive, Scope, Send, header, read_body, respond
from server.sandbox.intents import FINAL, LAST_CARD, PAID_CARD, REFUSED_CARDS, Intents
from server.sandbox.pages import FORM_BYTES_MAX, form, query, redirect, send_page
from server.sandbox.webhooks import Webhooks

JSON = b"application/json"
_CREATE_FAULTS = ("answer", "lose", "hang", "slow")
_HANG_SECONDS = 60.0
_SLOW_SECONDS = 1.0


class Psp:
    """The application."""

    def __init__(self, intents: Intents, webhooks: Webhooks, *, api_key: str) -> None:
        self._intents = intents
        self._webhooks = webhooks
        self._authorization = f"Bearer {api_key}"
        self._create_fault = "answer"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            body = await read_body(receive, bytes_max=FORM_BYTES_MAX)
        except BodyTooLarge:
            await _json(send, 413, {"error": "the body is too large"})
            return
        except ClientGone:
            return
        match scope["method"], scope["path"].strip("/").split("/"):
            case _, ["v1", *rest]:
                await self._api(scope, rest, body, send)
            case "GET", ["pay", intent_id]:
                await self._show(intent_id, send)
            case "POST", ["pay", intent_id]:
                await self._pay(intent_id, body, send)
            case "POST", ["control"]:
                await self._control(body, send)
            case "GET", ["healthz"]:
                await _json(send, 200, {"status": "ok"})
            case _:
                await send_page(send, "missing.html", status=404)

    async def _api(self, scope: Scope, path: list[str], body: bytes, send: Send) -> None:
        given = header(scope, b"authorization") or ""
        if not hmac.compare_digest(given.encode(), self._authorization.encode()):
            await _json(send, 401, {"error": "unknown API key"})
            return
        try:
            fields = msgspec.json.decode(body) if body else {}
            status, answer = await self._answer(scope, path, fields)
        except (ValueError, KeyError, TypeError, AttributeError, msgspec.DecodeError) as error:
            status, answer = 422, {"error": str(error)}
        await _json(send, status, answer)

    async def _answer(self, scope: Scope, path: list[str], fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match scope["method"], path:
            case "POST", ["intents"]:
                intent = self._intents.create(fields)
                return await self._created(intent)
            case "GET", ["intents"]:
                found = self._intents.of_operation(query(scope).get("operation_id", ""))
                return 200, {"data": [found] if found else []}
            case "GET", ["intents", intent_id]:
                known = self._intents.find(intent_id)
                return (200, known) if known else (404, {"error": "no such intent"})
            case "POST", ["intents", intent_id, "close"]:
                known = self._intents.find(intent_id)
                if known is None:
                    return 404, {"error": "no such intent"}
                step = self._intents.close(known, fields["as"])
                if step.event_type:
                    self._webhooks.emit(step.event_type, step.intent)
                return 200, step.intent
            case _:
                return 404, {"error": "no such route"}

    async def _created(self, intent: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._create_fault == "hang":
            await trio.sleep(_HANG_SECONDS)
        if self._create_fault == "slow":
            await trio.sleep(_SLOW_SECONDS)
        if self._create_fault == "lose":
            return 500, {"error": "the intent was created, and this answer is lost on purpose"}
        return 201, intent

    async def _show(self, intent_id: str, send: Send, *, message: str | None = None, status: int = 200) -> None:
        intent = self._intents.find(intent_id)
        if intent is None:
            await send_page(send, "missing.html", status=404)
            return
        await send_page(
            send,
            "pay.html",
            status=status,
            intent=intent,
            is_open=intent["status"] not in FINAL,
            back=_back(intent),
            message=message,
            paid_card=PAID_CARD,
            refused_cards=REFUSED_CARDS,
            last_card=LAST_CARD,
        )

    async def _pay(self, intent_id: str, body: bytes, send: Send) -> None:
        intent = self._intents.find(intent_id)
        if intent is None:
            await send_page(send, "missing.html", status=404)
            return
        try:
            step = self._intents.pay(intent, form(body).get("card", ""))
        except ValueError as error:
            await self._show(intent_id, send, message=str(error), status=422)
            return
        if step.event_type:
            self._webhooks.emit(step.event_type, step.intent)
        if step.intent["status"] not in FINAL:
            code = str(step.intent["last_decline_code"]).replace("_", " ")
            await self._show(intent_id, send, message=f"The card was refused ({code}). Try another one.", status=402)
        elif back := _back(step.intent):
            await redirect(send, back)
        else:
            await self._show(intent_id, send)

    async def _control(self, body: bytes, send: Send) -> None:
        wanted = msgspec.json.decode(body)
        if wanted.get("create") in _CREATE_FAULTS:
            self._create_fault = wanted["create"]
        match wanted.get("webhooks"):
            case "hold":
                self._webhooks.are_held = True
            case "release" | "send":
                self._webhooks.release()
        await _json(send, 200, {"webhooks_sent": self._webhooks.sent, "create": self._create_fault})


def _back(intent: dict[str, Any]) -> str | None:
    """Where the customer goes back to: the shop's address with the intent's id."""
    if not intent["return_url"]:
        return None
    parts = urlsplit(intent["return_url"])
    fields = [*parse_qsl(parts.query), ("intent", intent["id"])]
    return str(urlunsplit(parts._replace(query=urlencode(fields))))


async def _json(send: Send, status: int, answer: dict[str, Any]) -> None:
    await respond(send, status, msgspec.json.encode(answer), content_type=JSON)
