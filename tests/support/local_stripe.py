"""localstripe as a process on loopback, with additions that Florin needs: Checkout Sessions, keys, and lost answers."""

import asyncio
import re
import socket
import sys
import time
from typing import Any

from aiohttp import web
from localstripe import resources, server

RESOURCES: Any = resources
RESOURCES.Store.dump_to_disk = lambda _store: None

CONFIRM = "/v1/payment_intents/{id}/confirm"
_lose: dict[str, Any] = {}
_seen: list[str] = []
_answered: dict[tuple[str, str], tuple[int, bytes]] = {}


class Session(RESOURCES.StripeObject):  # type: ignore[misc]  # localstripe has no types
    """A Checkout Session."""

    object = "checkout.session"
    _id_prefix = "cs_test_"

    def __init__(self, **given: Any) -> None:
        for name in ("mode", "line_items", "success_url"):
            if not given.get(name):
                raise RESOURCES.UserError(400, f"Missing required param: {name}")
        data = given["line_items"][0]["price_data"]
        if int(given["expires_at"]) < time.time() + 1_800:
            raise RESOURCES.UserError(400, "expires_at must be at least 30 minutes from now")
        super().__init__()
        self.url = f"https://checkout.example/{self.id}"
        self.status = "open"
        self.metadata = given.get("metadata") or {}
        self.payment_intent = None
        self._amount, self._currency = data["unit_amount"], data["currency"]
        self._of_intent = given.get("payment_intent_data") or {}

    @classmethod
    def _api_expire(cls, id: str, **_given: Any) -> Any:  # noqa: A002 - localstripe's name
        session = cls._api_retrieve(id)
        if session.status != "open":
            raise RESOURCES.UserError(400, "Only open sessions can be expired")
        session.status = "expired"
        RESOURCES.schedule_webhook(RESOURCES.Event("checkout.session.expired", session))
        return session

    def _pay(self, payment_method: str) -> None:
        """The customer submits the page."""
        kept = {name: self._of_intent.get(name) for name in ("metadata", "capture_method") if self._of_intent.get(name)}
        intent = RESOURCES.PaymentIntent(amount=self._amount, currency=self._currency, payment_method=payment_method, **kept)
        self.payment_intent, self.status = intent.id, "complete"
        intent._confirm(on_failure_now=intent._report_failure)


@web.middleware
async def _faults(request: web.Request, handler: Any) -> web.StreamResponse:
    _seen.append(f"{request.method} {request.path}")
    is_lost = bool(_lose) and re.search(_lose["path"], request.path) is not None
    when = _lose.get("when")
    if is_lost:
        _lose.clear()
    response: web.StreamResponse | None = await handler(request) if not is_lost or when == "after" else None
    if is_lost or response is None:
        assert request.transport is not None
        request.transport.abort()
        raise asyncio.CancelledError
    return response


@web.middleware
async def _idempotent(request: web.Request, handler: Any) -> web.StreamResponse:
    key = request.headers.get("idempotency-key")
    if request.method != "POST" or key is None:
        unkept: web.StreamResponse = await handler(request)
        return unkept
    if (request.path, key) in _answered:
        status, body = _answered[request.path, key]
        return web.Response(status=status, body=body, content_type="application/json")
    response: web.StreamResponse = await handler(request)
    if isinstance(response, web.Response) and isinstance(response.body, bytes):
        _answered[request.path, key] = response.status, response.body
    return response


def _confirm(id: str, return_url: str | None = None, error_on_requires_action: str | None = None, **given: Any) -> Any:  # noqa: A002
    """localstripe's, which refuses two parameters that Stripe takes."""
    return RESOURCES.PaymentIntent._api_confirm(id=id, **given)


async def _set_lose(request: web.Request) -> web.Response:
    _lose.update(await request.json())
    return web.Response()


async def _pay(request: web.Request) -> web.Response:
    Session._api_retrieve(request.match_info["id"])._pay((await request.json())["payment_method"])
    return web.Response()


async def _requests(_request: web.Request) -> web.Response:  # noqa: ASYNC124 - aiohttp requires it
    return web.json_response(_seen)


def main() -> None:
    """Serve until killed."""
    app = web.Application(middlewares=[_faults, _idempotent, *server.app.middlewares[:2]])
    app.router.add_post("/v1/checkout/sessions/{id}/expire", server.api_extra(Session._api_expire, ""))
    app.router.add_post(CONFIRM, server.api_extra(_confirm, ""))
    app.router.add_post("/v1/checkout/sessions", server.api_create(Session, ""))
    app.router.add_get("/v1/checkout/sessions/{id}", server.api_retrieve(Session, ""))
    app.router.add_get("/v1/checkout/sessions", server.api_list_all(Session, ""))
    app.router.add_post("/_config/lose", _set_lose)
    app.router.add_post("/_config/pay/{id}", _pay)
    app.router.add_get("/_config/requests", _requests)
    for route in server.app.router.routes():
        if route.resource is not None and route.method != "HEAD" and route.resource.canonical != CONFIRM:
            app.router.add_route(route.method, route.resource.canonical, route.handler)
    web.run_app(app, sock=socket.socket(fileno=int(sys.argv[1])), print=lambda *_: None, access_log=None)


if __name__ == "__main__":
    main()
