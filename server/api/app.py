"""The API as an ASGI application: routes, authentication, and failures turned into problems."""

import hmac

import structlog
import trio

from core.errors import FlorinError, InvalidId, Malformed, NotFound, TooLarge, Unauthenticated
from core.ids import PSP_ACCOUNT, PspAccountId, decode_id
from server.api.authentication import Authentication
from server.api.ledger import LedgerApi
from server.api.operations import OperationsApi
from server.api.payments import JSON, PaymentsApi
from server.api.problems import send_error, send_problem, status_of
from server.db.merchants import Merchant
from server.flows.receive import receive, receive_unreadable
from server.flows.services import Services
from server.http.asgi import BodyTooLarge, ClientGone, Receive, Scope, Send, header, read_body, respond
from server.new_ids import uuid7
from server.telemetry import Metrics

BODY_BYTES_MAX = 65_536
HEALTH_SECONDS = 2.0
_log = structlog.get_logger()


class Api:
    """The application of one worker."""

    def __init__(self, services: Services, metrics: Metrics | None = None, *, metrics_token: str = "") -> None:
        self._services = services
        self._metrics = metrics
        self._metrics_token = metrics_token
        self._authentication = Authentication(services.db.pool)
        self._payments = PaymentsApi(services)
        self._operations = OperationsApi(services)
        self._ledger = LedgerApi(services)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http"
        request_id = f"req_{uuid7().hex}"
        try:
            body = await read_body(receive, bytes_max=BODY_BYTES_MAX)
            await self._route(scope, body, send, request_id=request_id)
        except ClientGone:
            return
        except BodyTooLarge:
            await send_error(send, TooLarge(f"a body has at most {BODY_BYTES_MAX} bytes"), request_id=request_id)
        except FlorinError as error:
            if status_of(error) >= 500:
                _log.error("a request failed", request_id=request_id, path=scope["path"], error=repr(error))
            await send_error(send, error, request_id=request_id)

    async def _route(self, scope: Scope, body: bytes, send: Send, *, request_id: str) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        match method, scope["path"].strip("/").split("/"):
            case "POST", ["v1", "payments"]:
                merchant = await self._merchant(scope)
                await self._payments.create(merchant, scope, body, send, request_id=request_id)
            case "GET", ["v1", "payments"]:
                await self._payments.list(await self._merchant(scope), scope, send)
            case "GET", ["v1", "payments", payment_id]:
                await self._payments.read(await self._merchant(scope), payment_id, scope, send)
            case "GET", ["v1", "payments", payment_id, "logs"]:
                await self._payments.logs(await self._merchant(scope), payment_id, send)
            case "GET", ["v1", "payments", payment_id, "receipt"]:
                payment = await self._payments.find(await self._merchant(scope), payment_id)
                await self._ledger.receipt(payment, send)
            case "GET", ["v1", "payments", payment_id, "refunds"]:
                await self._payments.refunds(await self._merchant(scope), payment_id, send)
            case "POST", ["v1", "payments", payment_id, "verify"]:
                await self._payments.verify(await self._merchant(scope), payment_id, send)
            case "POST", ["v1", "payments", payment_id, ("capture" | "cancel" | "refunds") as verb]:
                merchant = await self._merchant(scope)
                act = {"capture": self._operations.capture, "cancel": self._operations.cancel, "refunds": self._operations.refund}
                await act[verb](merchant, payment_id, scope, body, send, request_id=request_id)
            case "GET", ["v1", "wallets"]:
                await self._ledger.wallets(await self._merchant(scope), scope, send)
            case "GET", ["v1", "statement"]:
                await self._ledger.statement(await self._merchant(scope), scope, send)
            case "GET", ["v1", "receipt-keys"]:
                await self._ledger.receipt_keys(send)
            case "POST", ["v1", "psp", psp, account, "webhooks"]:
                await self._psp_webhook(psp, account, scope, body, send)
            case "GET", ["healthz"]:
                await self._health(send)
            case "GET", ["metrics"] if self._metrics is not None and self._metrics_token:
                await self._expose(self._metrics, scope, send)
            case _, path if (allow := _allowed(path)) is not None:
                await _send_not_allowed(scope, send, allow=allow, request_id=request_id)
            case _:
                raise NotFound(f"there is nothing at {scope['path'][:200]}", code="no_such_route")

    async def _merchant(self, scope: Scope) -> Merchant:
        return await self._authentication.merchant_of(scope)

    async def _psp_webhook(self, psp: str, account: str, scope: Scope, body: bytes, send: Send) -> None:
        """`POST /v1/psp/{psp}/{account}/webhooks`. 200 only after the commit; anything else makes the PSP send it again."""
        try:
            account_id = PspAccountId(decode_id(PSP_ACCOUNT, account))
        except InvalidId as error:
            raise NotFound("no such PSP account") from error
        adapter = await self._services.psps.named(psp, account_id)
        now = self._services.now().timestamp()
        try:
            notice = adapter.read_webhook(dict(scope["headers"]), body, now=now)
        except Malformed as error:
            await receive_unreadable(self._services, adapter, body, error)
        else:
            await receive(self._services, adapter, notice)
        await respond(send, 200, b'{"received":true}', content_type=JSON)

    async def _expose(self, metrics: Metrics, scope: Scope, send: Send) -> None:
        """`GET /metrics`: this worker's metrics, for who has the token of the settings."""
        given = header(scope, b"authorization") or ""
        if not hmac.compare_digest(given.encode(), f"Bearer {self._metrics_token}".encode()):
            raise Unauthenticated("send FLORIN_METRICS_TOKEN as `Authorization: Bearer ...`", code="metrics_token_wrong")
        await respond(send, 200, metrics.exposition(), content_type=b"text/plain; version=0.0.4; charset=utf-8")

    async def _health(self, send: Send) -> None:
        """`GET /healthz`: whether this worker can take payments, for load balancers."""
        with trio.move_on_after(HEALTH_SECONDS):
            try:
                async with self._services.db.pool.connection() as connection:
                    await connection.query("SELECT 1")
            except FlorinError:
                pass
            else:
                await respond(send, 200, b'{"status":"ok"}', content_type=JSON)
                return
        await respond(send, 503, b'{"status":"no database"}', content_type=JSON, headers=[(b"retry-after", b"1")])


def _allowed(path: list[str]) -> bytes | None:
    """What can be asked of a path that exists, for a request that asks something else."""
    match path:
        case ["v1", "payments"] | ["v1", "payments", _, "refunds"]:
            return b"GET, HEAD, POST"
        case ["v1", "payments", _, "capture" | "cancel" | "verify"] | ["v1", "psp", _, _, "webhooks"]:
            return b"POST"
        case ["v1", "payments", _] | ["v1", "payments", _, "logs" | "receipt"]:
            return b"GET, HEAD"
        case ["v1", "wallets" | "statement" | "receipt-keys"] | ["healthz"]:
            return b"GET, HEAD"
        case _:
            return None


async def _send_not_allowed(scope: Scope, send: Send, *, allow: bytes, request_id: str) -> None:
    detail = f"{scope['method']} is not possible here"
    headers = [(b"allow", allow)]
    await send_problem(send, 405, code="method_not_allowed", detail=detail, request_id=request_id, headers=headers)
