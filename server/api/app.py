"""The API as an ASGI application: it finds the route, authenticates the caller, and turns failures into problems."""

import hmac
from collections.abc import Awaitable, Callable, Mapping, Set

import msgspec
import structlog

from core.errors import FlorinError, InvalidId, Malformed, NotFound, TooLarge, Unauthenticated, UnsupportedEncoding
from core.ids import PSP_ACCOUNT, REQUEST, PspAccountId, decode_id, encode_id
from server.api.authentication import Authentication
from server.api.batches.handlers import BatchesApi
from server.api.batches.routes import batch_routes
from server.api.cross_origin import granted, preflight
from server.api.docs.page import page
from server.api.events.handlers import EventsApi
from server.api.events.routes import event_routes
from server.api.events.stream import StreamApi
from server.api.ledger.handlers import LedgerApi
from server.api.ledger.routes import ledger_routes
from server.api.limits import limited, require_room
from server.api.merchants.handlers import KeysApi
from server.api.merchants.routes import key_routes
from server.api.openapi import document
from server.api.parsing import read_query, require_harmless_target
from server.api.payments.handlers import PaymentsApi
from server.api.payments.operations import OperationsApi
from server.api.payments.routes import operation_routes, payment_routes
from server.api.problems import request_id_header, send_error, send_problem, status_of
from server.api.replies import JSON, location, with_headers
from server.api.routing import BODY_BYTES_MAX, Call, Route, Router, allowed
from server.api.webhooks.handlers import EndpointsApi
from server.api.webhooks.routes import delivery_routes, endpoint_routes, letter_routes
from server.flows.contexts import Contexts
from server.flows.payments import psp_events as psp_events
from server.http.asgi import BodyTooLarge, ClientGone, Receive, Scope, Send, header, read_body, respond
from server.telemetry import Metrics
from server.uuid7 import uuid7

STREAM_PATH = "/v1/stream"
_log = structlog.get_logger()


class Api:
    """The application of one worker. `run` watches over open streams."""

    def __init__(
        self,
        contexts: Contexts,
        metrics: Metrics | None = None,
        *,
        metrics_token: str = "",
        allowed_origins: Set[str] = frozenset(),
    ) -> None:
        self._payments = payments = contexts.payments
        self._health = contexts.health
        self._limits = contexts.request_limits
        self._metrics = metrics
        self._metrics_token = metrics_token
        self._origins = allowed_origins
        self._authentication = Authentication(payments.pool, contexts.settings_validity, now=payments.now)
        self.take_used_keys = self._authentication.take_used
        self._stream = StreamApi(contexts.events, self._authentication)
        self._events = EventsApi(contexts.events)
        self.run = self._stream.run
        self._batches = BatchesApi(contexts.batches)
        endpoints = EndpointsApi(contexts.webhooks)
        shown = [
            *payment_routes(PaymentsApi(payments)),
            *operation_routes(OperationsApi(payments)),
            *batch_routes(self._batches),
            *ledger_routes(LedgerApi(contexts.receipts)),
            *event_routes(self._events),
            *endpoint_routes(endpoints),
            *delivery_routes(endpoints),
            *letter_routes(endpoints),
            *key_routes(KeysApi(contexts.webhooks)),
        ]
        self.routes = shown
        """The routes of the merchants' API."""
        self.document = msgspec.json.encode(document(shown))
        self._page = page(self.document)
        self._router = Router([*shown, *self._own_routes()])

    def end_waits(self) -> None:
        """Answer all requests that wait for something to happen, because this worker stops."""
        self._events.end_waits()
        self._batches.end_waits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one websocket."""
        if scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
            return
        assert scope["type"] == "http"
        made = uuid7()
        request_id = encode_id(REQUEST, made)
        send = with_headers(send, [request_id_header(request_id)])
        routes, given = self._router.find(scope["raw_path"])
        route = routes.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if self._origins and (more := granted(self._origins, scope, route)):
            send = with_headers(send, more)
        bytes_max = route.body_bytes_max if route is not None else BODY_BYTES_MAX
        try:
            _require_readable(scope, bytes_max)
            body = b"" if route is not None and route.reads_body else await read_body(receive, bytes_max=bytes_max)
            if route is None:
                await self._refuse(scope, send, routes, request_id=request_id)
                return
            caller = None
            if not route.is_public:
                caller = await self._authentication.caller_of(scope)
                caller.require(route.scope)
            if given or scope["query_string"]:
                if caller is not None:
                    require_harmless_target(scope)
                if scope["query_string"] and not route.takes_query and not route.is_hidden:
                    read_query(scope)
            if caller is None:
                await route.handle(Call(made, scope, body, send, caller, receive), *given)
            else:
                send = limited(self._limits, caller, send)
                merchant = caller.merchant
                require_room(self._limits, merchant)
                try:
                    await route.handle(Call(made, scope, body, send, caller, receive), *given)
                finally:
                    self._limits.leave(merchant.id)
        except ClientGone:
            return
        except BodyTooLarge:
            await send_error(send, _too_large(bytes_max), request_id=request_id)
        except FlorinError as error:
            if status_of(error) >= 500:
                _log.error("a request failed", request_id=request_id, path=scope["path"], error=repr(error))
            await send_error(send, error, request_id=request_id)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"] == STREAM_PATH.encode():
            await self._stream.serve(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close"})

    async def _refuse(self, scope: Scope, send: Send, routes: Mapping[str, Route], *, request_id: str) -> None:
        """Answer a request for an unknown path or with another method. Raises `NotFound`."""
        method, path = scope["method"], scope["path"]
        if not routes:
            other = b"/" + b"/".join(filter(None, scope["raw_path"].split(b"/")))
            is_near = other != scope["raw_path"] and self._router.find(other)[0]
            hint = f": did you mean {other.decode('latin-1')[:200]}?" if is_near else ""
            raise NotFound(f"there is nothing at {path[:200]}{hint}", code="no_such_route")
        headers = [(b"allow", allowed(routes))]
        if method == "OPTIONS":
            asked = routes.get(header(scope, b"access-control-request-method") or "")
            headers += preflight(self._origins, scope, asked)
            await respond(send, 204, b"", content_type=JSON, headers=headers)
            return
        detail = f"this path does not support {method}: it takes {allowed(routes).decode()}"
        await send_problem(send, 405, code="method_not_allowed", detail=detail, request_id=request_id, headers=headers)

    def _own_routes(self) -> list[Route]:
        """The routes outside the merchants' API, and those that describe it."""

        def route(method: str, path: str, handle: Callable[..., Awaitable[None]], *, is_cross_origin: bool = False) -> Route:
            return Route(
                method=method,
                path=path,
                handle=handle,
                tag="",
                summary="",
                replies={},
                is_public=True,
                is_hidden=True,
                is_cross_origin=is_cross_origin,
            )

        found = [
            route("POST", "/v1/psp/{psp}/{account}/webhooks", self._psp_webhook),
            route("GET", STREAM_PATH, self._want_websocket),
            route("GET", "/", self._to_docs),
            route("GET", "/livez", self._live, is_cross_origin=True),
            route("GET", "/readyz", self._ready, is_cross_origin=True),
            route("GET", "/healthz", self._ready, is_cross_origin=True),
            route("GET", "/openapi.json", self._describe, is_cross_origin=True),
            route("GET", "/docs", self._docs, is_cross_origin=True),
        ]
        if self._metrics is not None and self._metrics_token:
            found.append(route("GET", "/metrics", self._expose))
        return found

    async def _psp_webhook(self, call: Call, psp: str, account: str) -> None:
        """`POST /v1/psp/{psp}/{account}/webhooks`. Replies 200 only after the commit; after anything else the PSP sends
        it again.
        """
        try:
            account_id = PspAccountId(decode_id(PSP_ACCOUNT, account))
        except InvalidId as error:
            raise NotFound("no such PSP account") from error
        adapter = await self._payments.psps.named(psp, account_id)
        now = self._payments.now().timestamp()
        try:
            notice = adapter.read_webhook(dict(call.scope["headers"]), call.body, now=now)
        except Malformed as error:
            await psp_events.receive_unreadable(self._payments, adapter, call.body, error)
        else:
            await psp_events.receive(self._payments, adapter, notice)
        await respond(call.send, 200, b'{"received":true}', content_type=JSON)

    async def _want_websocket(self, call: Call) -> None:
        detail, headers = "this path is a websocket: send an upgrade request", [(b"upgrade", b"websocket")]
        request_id = call.request_id
        await send_problem(call.send, 426, code="websocket_required", detail=detail, request_id=request_id, headers=headers)

    async def _to_docs(self, call: Call) -> None:
        """`GET /`: leads to the description of the API."""
        await respond(call.send, 303, b"see /docs\n", content_type=b"text/plain", headers=[location("/docs")])

    async def _describe(self, call: Call) -> None:
        """`GET /openapi.json`."""
        await respond(call.send, 200, self.document, content_type=JSON)

    async def _docs(self, call: Call) -> None:
        """`GET /docs`. The page loads nothing from anywhere."""
        policy = b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        headers = [(b"content-security-policy", policy), (b"x-content-type-options", b"nosniff")]
        await respond(call.send, 200, self._page, content_type=b"text/html; charset=utf-8", headers=headers)

    async def _expose(self, call: Call) -> None:
        """`GET /metrics`: this worker's metrics, for holders of the token in the settings."""
        assert self._metrics is not None
        given = header(call.scope, b"authorization") or ""
        if not hmac.compare_digest(given.encode(), f"Bearer {self._metrics_token}".encode()):
            raise Unauthenticated("send FLORIN_METRICS_TOKEN as `Authorization: Bearer ...`", code="metrics_token_wrong")
        exposition = self._metrics.exposition()
        await respond(call.send, 200, exposition, content_type=b"text/plain; version=0.0.4; charset=utf-8")

    async def _live(self, call: Call) -> None:
        """`GET /livez`: 200 while this worker's event loop answers. Restart it if it does not."""
        await respond(call.send, 200, b'{"status":"ok"}', content_type=JSON)

    async def _ready(self, call: Call) -> None:
        """`GET /readyz`: for load balancers, 200 while this worker can take payments, which includes writing to the database."""
        problem = self._health.problem
        if problem is None:
            await respond(call.send, 200, b'{"status":"ok"}', content_type=JSON)
            return
        headers = [(b"retry-after", b"1")]
        await respond(call.send, 503, msgspec.json.encode({"status": problem}), content_type=JSON, headers=headers)


def _require_readable(scope: Scope, bytes_max: int) -> None:
    """Refuse a body that would be too large, or in an encoding that is not supported, before the client sends it.

    Raises `TooLarge` or `UnsupportedEncoding`.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > bytes_max:
            raise _too_large(bytes_max)
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedEncoding("send the body without a Content-Encoding")


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"a body has at most {bytes_max} bytes")
