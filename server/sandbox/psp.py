"""The sandbox PSP over HTTP: an API for Florin, a hosted page for customers, a control API for tests.

API (Bearer key): POST /v1/intents, GET /v1/intents?operation_id=, GET /v1/intents/{id}, POST /v1/intents/{id}/close, /capture,
/void and /refunds. Customers: GET and POST /pay/{id}. Tests: POST /control with {"webhooks":
"send"|"hold"|"release"|"reverse"|"repeat"}, {"create" or "capture" or "close" or "void" or "refund":
"answer"|"lose"|"hang"|"slow"|"refuse"|"drop"} ("lose": it is done and the answer is lost, "drop": it is not even done),
{"refunds_end_as": "succeeded"|"pending"|"failed"}, {"end_refund": refund, "of": intent, "as": ...}, {"expire": intent} (an
authorization ends), {"capture_late": intent} (paid after it was closed), {"dispute": intent, "as": "opened"|"won"|"lost",
"amount_minor": n}.
"""

import hmac
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import trio

from server.http.asgi import BodyTooLarge, ClientGone, Receive, Scope, Send, header, read_body, respond
from server.sandbox.intents import LAST_CARD, PAID_CARD, REFUSED_CARDS, Intents, Step
from server.sandbox.pages import FORM_BYTES_MAX, form, query, redirect, send_page
from server.sandbox.webhooks import Webhooks

JSON = b"application/json"
_FAULTS = ("answer", "lose", "hang", "slow", "refuse", "drop")
_CALLS = ("create", "capture", "close", "void", "refund")
_HANG_SECONDS = 60.0
REPEATED = 20
"""How many of its last events the PSP sends again when told to."""

_SLOW_SECONDS = 1.0


class Psp:
    """The application."""

    def __init__(self, intents: Intents, webhooks: Webhooks, *, api_key: str) -> None:
        self._intents = intents
        self._webhooks = webhooks
        self._authorization = f"Bearer {api_key}"
        self._faults = dict.fromkeys(_CALLS, "answer")

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
                return await self._faulty("create", lambda: Step(self._intents.create(fields), None), status=201)
            case "GET", ["intents"]:
                found = self._intents.of_operation(query(scope).get("operation_id", ""))
                return 200, {"data": [found] if found else []}
            case "GET", ["intents", intent_id]:
                known = self._intents.find(intent_id)
                return (200, known) if known else (404, {"error": "no such intent"})
            case "POST", ["intents", intent_id, ("close" | "capture" | "void" | "refunds") as verb]:
                known = self._intents.find(intent_id)
                if known is None:
                    return 404, {"error": "no such intent"}
                return await self._changed(known, verb, fields)
            case _:
                return 404, {"error": "no such route"}

    async def _changed(self, intent: dict[str, Any], verb: str, fields: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match verb:
            case "close":
                return await self._faulty("close", lambda: self._intents.close(intent, fields["as"]))
            case "void":
                return await self._faulty("void", lambda: self._intents.void(intent))
            case "capture":
                return await self._faulty("capture", lambda: self._intents.capture(intent, fields["amount_minor"]))
            case _:
                refund = partial(self._intents.refund, intent, fields["refund_id"], fields["amount_minor"])
                return await self._faulty("refund", refund, status=201)

    async def _faulty(self, call: str, act: Callable[[], Step], *, status: int = 200) -> tuple[int, dict[str, Any]]:
        """Act, and answer with what the control API has set for this call."""
        fault = self._faults[call]
        if fault == "drop":
            return 500, {"error": "nothing was done, on purpose"}
        if fault == "refuse":
            return 422, {"error": "refused on purpose"}
        step = act()
        if step.event_type:
            self._webhooks.emit(step.event_type, step.intent)
        if fault == "hang":
            await trio.sleep(_HANG_SECONDS)
        if fault == "slow":
            await trio.sleep(_SLOW_SECONDS)
        if fault == "lose":
            return 500, {"error": "it was done, and this answer is lost on purpose"}
        return status, step.intent

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
            is_open=intent["status"] == "open",
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
        if step.intent["status"] == "open":
            code = str(step.intent["last_decline_code"]).replace("_", " ")
            await self._show(intent_id, send, message=f"The card was refused ({code}). Try another one.", status=402)
        elif back := _back(step.intent):
            await redirect(send, back)
        else:
            await self._show(intent_id, send)

    async def _control(self, body: bytes, send: Send) -> None:
        wanted = msgspec.json.decode(body)
        for call in _CALLS:
            if wanted.get(call) in _FAULTS:
                self._faults[call] = wanted[call]
        match wanted.get("webhooks"):
            case "hold":
                self._webhooks.are_held = True
            case "release" | "send":
                self._webhooks.release()
            case "reverse":
                self._webhooks.release(reverse=True)
            case "repeat":
                self._webhooks.repeat(REPEATED)
        if wanted.get("refunds_end_as") in ("succeeded", "pending", "failed"):
            self._intents.refunds_end_as = wanted["refunds_end_as"]
        try:
            self._happen(wanted)
        except (ValueError, KeyError) as error:
            await _json(send, 422, {"error": str(error)})
            return
        await _json(send, 200, {"webhooks_sent": self._webhooks.sent, **self._faults})

    def _happen(self, wanted: dict[str, Any]) -> None:
        """What happens at a PSP without being asked for."""
        match wanted:
            case {"end_refund": refund_id, "of": intent_id, "as": status}:
                step = self._intents.end_refund(self._known(intent_id), refund_id, status)
                self._webhooks.emit("refund.updated", step.intent)
            case {"expire": intent_id}:
                step = self._intents.expire(self._known(intent_id))
                self._webhooks.emit("intent.expired", step.intent)
            case {"capture_late": intent_id}:
                step = self._intents.capture_late(self._known(intent_id))
                self._webhooks.emit("intent.captured", step.intent)
            case {"dispute": intent_id, "as": "opened" | "won" | "lost" as end, "amount_minor": amount}:
                dispute = {"id": f"dis_{intent_id}", "amount_minor": amount}
                self._webhooks.emit(f"dispute.{end}", {**self._known(intent_id), "dispute": dispute})

    def _known(self, intent_id: str) -> dict[str, Any]:
        intent = self._intents.find(intent_id)
        if intent is None:
            raise ValueError("no such intent")
        return intent


def _back(intent: dict[str, Any]) -> str | None:
    """Where the customer goes back to: the shop's address with the intent's id."""
    if not intent["return_url"]:
        return None
    parts = urlsplit(intent["return_url"])
    fields = [*parse_qsl(parts.query), ("intent", intent["id"])]
    return str(urlunsplit(parts._replace(query=urlencode(fields))))


async def _json(send: Send, status: int, answer: dict[str, Any]) -> None:
    await respond(send, status, msgspec.json.encode(answer), content_type=JSON)
