"""The sandbox PSP over HTTP: an API for Florin, a hosted page for customers, a control API for tests (`server.sandbox.control`).

API (Bearer key): POST /v1/intents; GET /v1/intents?operation_id=, or ?created_from=&created_before=&limit=&after=; GET
/v1/intents/{id}; POST /v1/intents/{id}/close, /capture, /void and /refunds; GET
/v1/events?created_from=&types=all|rare&limit=&after=; GET /v1/movements?limit=&after=, the ledger; GET /v1/balances. A POST with
an Idempotency-Key is carried out once: a repetition gets the same answer, and one with another body is refused. Customers: GET
and POST /pay/{id}.
"""

import hashlib
import hmac
from collections import OrderedDict
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from server.http.asgi import BodyTooLarge, ClientGone, Receive, Scope, Send, header, read_body, respond
from server.sandbox.control import control
from server.sandbox.faults import CALLS, Answer, Fault, Faults, Unavailable
from server.sandbox.intents import (
    CHALLENGED_CARD,
    LAST_CARD,
    PAID_CARD,
    REFUSED_CARDS,
    UNKNOWN_TOKEN,
    Intents,
    Step,
    UnknownToken,
)
from server.sandbox.pages import FORM_BYTES_MAX, form, query, redirect, send_page
from server.sandbox.webhooks import Webhooks

JSON = b"application/json"
KEYS_MAX = 200_000
PAGE_MAX = 100
LATEST = 1 << 40
_CARDS = {
    PAID_CARD: "is accepted",
    CHALLENGED_CARD: "is accepted after the bank has asked (3-D Secure)",
    **{card: f"is refused: {code.replace('_', ' ')}" for card, code in REFUSED_CARDS.items()},
    LAST_CARD: "is refused for good",
}
_CALL_BY_VERB = {"close": "close", "capture": "capture", "void": "void", "refunds": "refund"}


class Psp:
    """The application."""

    def __init__(self, intents: Intents, webhooks: Webhooks, *, api_key: str, business_name: str) -> None:
        self._business_name = business_name
        self._intents = intents
        self._webhooks = webhooks
        self._authorization = f"Bearer {api_key}"
        self._faults = Faults()
        self._answers: OrderedDict[str, tuple[bytes, Answer]] = OrderedDict()

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
                await self._pay(intent_id, form(body), send)
            case "POST", ["control"]:
                await control(self._intents, self._webhooks, self._faults, body, send)
            case "GET", [""]:
                await send_page(send, "psp.html", address=self._intents.public_url, known=CALLS, faults=list(Fault))
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
            await self._faults.serve(_call(scope, path), partial(self._answer, scope, path, body), send)
        except Unavailable:
            await _json(send, 503, {"error": "the PSP is in an outage, as set by the control API"})

    def _answer(self, scope: Scope, path: list[str], body: bytes) -> Answer:
        """Carry out a request, once per idempotency key."""
        key = header(scope, b"idempotency-key") if scope["method"] == "POST" else None
        fingerprint = hashlib.sha256(scope["path"].encode() + b"\0" + body).digest()
        known = self._answers.get(key) if key is not None else None
        if known is not None:
            same = hmac.compare_digest(known[0], fingerprint)
            return known[1] if same else (422, {"error": "this Idempotency-Key was used for a different request"})
        try:
            answer = self._act(scope, path, msgspec.json.decode(body) if body else {})
        except UnknownToken as error:
            return 422, {"error": str(error), "code": UNKNOWN_TOKEN}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, msgspec.DecodeError) as error:
            return 422, {"error": str(error)}
        if key is not None and answer[0] < 300:
            self._answers[key] = fingerprint, answer
            if len(self._answers) > KEYS_MAX:
                self._answers.popitem(last=False)
        return answer

    def _act(self, scope: Scope, path: list[str], fields: dict[str, Any]) -> Answer:
        match scope["method"], path:
            case "POST", ["intents"]:
                return 201, self._intents.create(fields)
            case "GET", ["intents"]:
                return 200, {"data": self._list(query(scope))}
            case "GET", ["intents", intent_id]:
                known = self._intents.find(intent_id)
                return (200, known) if known else (404, {"error": "no such intent"})
            case "POST", ["intents", intent_id, ("close" | "capture" | "void" | "refunds") as verb]:
                known = self._intents.find(intent_id)
                return self._change(known, verb, fields) if known else (404, {"error": "no such intent"})
            case "GET", ["events"]:
                wanted = query(scope)
                limit = _limit(wanted)
                page = self._webhooks.events(
                    created_from=int(wanted.get("created_from", 0)),
                    created_before=int(wanted.get("created_before", LATEST)),
                    only_rare=wanted.get("types") == "rare",
                    after=wanted.get("after", ""),
                    limit=limit + 1,
                )
                return 200, {"data": page[:limit], "has_more": len(page) > limit}
            case "GET", ["movements"]:
                wanted = query(scope)
                return 200, {"data": self._intents.movements(after=wanted.get("after", ""), limit=_limit(wanted))}
            case "GET", ["balances"]:
                return 200, self._intents.balances()
            case _:
                return 404, {"error": "no such route"}

    def _list(self, wanted: dict[str, str]) -> list[dict[str, Any]]:
        if "operation_id" in wanted:
            found = self._intents.of_operation(wanted["operation_id"])
            return [found] if found else []
        return self._intents.window(
            created_from=int(wanted.get("created_from", 0)),
            created_before=int(wanted.get("created_before", LATEST)),
            after=wanted.get("after", ""),
            limit=_limit(wanted),
        )

    def _change(self, intent: dict[str, Any], verb: str, fields: dict[str, Any]) -> Answer:
        match verb:
            case "close":
                step = self._intents.close(intent, fields["as"])
            case "void":
                step = self._intents.void(intent)
            case "capture":
                step = self._intents.capture(intent, fields["amount_minor"])
            case _:
                step = self._intents.refund(intent, fields["refund_id"], fields["amount_minor"])
        self._tell(step)
        return (201 if verb == "refunds" else 200), step.intent

    def _tell(self, step: Step) -> None:
        if step.event_type:
            self._webhooks.emit(step.event_type, step.intent)

    async def _show(self, intent_id: str, send: Send, *, message: str | None = None, status: int = 200) -> None:
        intent = self._intents.find(intent_id)
        if intent is None:
            await send_page(send, "missing.html", status=404)
            return
        is_open = intent["status"] == "open"
        await send_page(
            send,
            "confirm.html" if is_open and intent.get("challenge") else "pay.html",
            status=status,
            intent=intent,
            is_open=is_open,
            back=_back(intent),
            message=message,
            business_name=self._business_name,
            cards=_CARDS,
        )

    async def _pay(self, intent_id: str, fields: dict[str, str], send: Send) -> None:
        intent = self._intents.find(intent_id)
        if intent is None:
            await send_page(send, "missing.html", status=404)
            return
        try:
            if intent.get("challenge") and "confirm" in fields:
                step = self._intents.confirm(intent, is_customer=fields["confirm"] == "yes")
            else:
                step = self._intents.pay(intent, fields.get("test_card") or fields.get("card", ""))
        except ValueError as error:
            await self._show(intent_id, send, message=str(error), status=422)
            return
        self._tell(step)
        if step.intent["status"] != "open":
            back = _back(step.intent)
            await (redirect(send, back) if back else self._show(intent_id, send))
        elif step.intent.get("challenge"):
            await self._show(intent_id, send)
        else:
            code = str(step.intent["last_decline_code"]).replace("_", " ")
            await self._show(intent_id, send, message=f"The card was refused ({code}). Try another one.", status=402)


def _call(scope: Scope, path: list[str]) -> str:
    """The kind of call that a request is, for its faults."""
    if scope["method"] == "POST":
        return _CALL_BY_VERB.get(path[-1], "create")
    is_list = path[0] != "intents" or (len(path) == 1 and b"operation_id=" not in scope["query_string"])
    return "list" if is_list else "fetch"


def _limit(wanted: dict[str, str]) -> int:
    return max(min(int(wanted.get("limit", PAGE_MAX)), PAGE_MAX), 1)


def _back(intent: dict[str, Any]) -> str | None:
    """The address to which the customer returns: the shop's, with the intent's id."""
    if not intent["return_url"]:
        return None
    parts = urlsplit(intent["return_url"])
    fields = [*parse_qsl(parts.query), ("intent", intent["id"])]
    return str(urlunsplit(parts._replace(query=urlencode(fields))))


async def _json(send: Send, status: int, answer: dict[str, Any]) -> None:
    await respond(send, status, msgspec.json.encode(answer), content_type=JSON)
