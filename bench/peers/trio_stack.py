"""`python -m bench.peers.trio_stack CONFIGURATION`: quart-trio on hypercorn, httpx, psycopg in threads.

psycopg does not support trio, so a trio program without a driver of its own runs each transaction in a worker thread.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import Any, TypeVar
from uuid import UUID

import httpx  # noqa: ASYNC127 - this is the peer
import psycopg
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio

from bench.peers import flow

DATABASE_CONNECTIONS = 16
_JSON = "application/json"
T = TypeVar("T")
Cursor = psycopg.Cursor[Any]


class Server:
    """Shared by the handlers."""

    def __init__(self, configuration: flow.Configuration, http: httpx.AsyncClient, nursery: trio.Nursery) -> None:
        self._configuration = configuration
        self._http = http
        self._nursery = nursery
        self._merchants: dict[str, UUID] = {}
        self._endpoints: dict[UUID, list[tuple[UUID, str]]] = {}
        self._limiter = trio.CapacityLimiter(DATABASE_CONNECTIONS)
        self._connections: SimpleQueue[psycopg.Connection[Any]] = SimpleQueue()
        for _ in range(DATABASE_CONNECTIONS):
            self._connections.put(psycopg.connect(configuration.database_url, cursor_factory=psycopg.RawCursor))

    async def create(self) -> Response:
        """`POST /v1/payments`."""
        merchant_id = await self._merchant_of(request.headers.get("authorization", "").removeprefix("Bearer "))
        key = request.headers.get("idempotency-key")
        if merchant_id is None or key is None:
            return Response(b"{}", 401 if merchant_id is None else 400, content_type=_JSON)
        payment = flow.new_payment(merchant_id, key, await _body())
        stored = await self._in_transaction(lambda cursor: self._accept(cursor, payment))
        if stored is not None:
            return stored
        headers = {"content-type": _JSON, "idempotency-key": str(payment.operation_id)}
        answer = await self._http.post(f"{self._configuration.psp_url}/v1/intents", content=payment.psp_body(), headers=headers)
        reference = flow.read_reference(answer.content, payment)
        body = payment.rendered(reference)
        now, event_id = datetime.now(UTC), flow.uuid7()
        seq = await self._in_transaction(lambda cursor: self._capture(cursor, payment, reference, body, event_id, now))
        message = flow.envelope(event_id, seq, body, now)
        for endpoint_id, url in self._endpoints[merchant_id]:
            self._nursery.start_soon(self._deliver, merchant_id, endpoint_id, url, seq, event_id, message)
        return Response(body, 201, content_type=_JSON)

    async def _in_transaction(self, work: Callable[[Cursor], T]) -> T:
        def run() -> T:
            connection = self._connections.get_nowait()  # the limiter has one place for each
            try:
                with connection.transaction(), connection.cursor() as cursor:
                    return work(cursor)
            finally:
                self._connections.put(connection)

        return await trio.to_thread.run_sync(run, limiter=self._limiter)

    async def _merchant_of(self, key: str) -> UUID | None:
        if key not in self._merchants:

            def find(cursor: Cursor) -> tuple[Any, list[tuple[UUID, str]]]:
                found = cursor.execute(flow.MERCHANT_OF_KEY, (flow.key_hash(key),)).fetchone()
                return found, cursor.execute(flow.ENDPOINTS, found).fetchall() if found else []

            found, endpoints = await self._in_transaction(find)
            if found is None:
                return None
            self._merchants[key] = found[0]
            self._endpoints[found[0]] = endpoints
        return self._merchants[key]

    def _accept(self, cursor: Cursor, payment: flow.Payment) -> Response | None:
        if cursor.execute(*payment.own_key()).rowcount == 1:
            for statement, values in payment.accepted(self._configuration.psp_account_id):
                cursor.execute(statement, values)
            return None
        stored = cursor.execute(flow.FIND_KEY, (payment.merchant_id, payment.key)).fetchone()
        assert stored is not None
        if stored[0] != payment.fingerprint:
            return Response(b"{}", 422, content_type=_JSON)
        return Response(stored[2] or b"{}", stored[1] or 409, content_type=_JSON)

    def _capture(self, cursor: Cursor, payment: flow.Payment, reference: str, body: bytes, event_id: UUID, now: datetime) -> int:
        done = cursor.execute(flow.CAPTURE_PAYMENT, (payment.merchant_id, payment.id, reference, now))
        assert done.rowcount == 1
        for statement, values in payment.captured(reference, body, now):
            cursor.execute(statement, values)
        numbers = cursor.execute(flow.NEXT_NUMBERS, (payment.merchant_id,)).fetchone()
        assert numbers is not None
        seq, last_entry = numbers
        for statement, values in payment.posted(self._configuration.psp_account_id, event_id, seq, last_entry, body, now):
            cursor.execute(statement, values)
        due_at = now + timedelta(seconds=30)
        for endpoint_id, _ in self._endpoints[payment.merchant_id]:
            cursor.execute(flow.INSERT_DELIVERY, (payment.merchant_id, endpoint_id, seq, due_at, now))
        number: int = seq
        return number

    async def _deliver(self, merchant_id: UUID, endpoint_id: UUID, url: str, seq: int, event_id: UUID, message: bytes) -> None:
        headers = flow.signed_headers(self._configuration.webhook_secret, event_id, message)
        answer = await self._http.post(url, content=message, headers=headers)
        if answer.status_code < 300:
            values = (merchant_id, endpoint_id, seq, answer.status_code, datetime.now(UTC))
            await self._in_transaction(lambda cursor: cursor.execute(flow.END_DELIVERY, values))


async def _body() -> bytes:
    body = await request.get_data()
    assert isinstance(body, bytes)
    return body


async def run(configuration: flow.Configuration) -> None:
    """Serve until killed."""
    app = QuartTrio(__name__)
    limits = httpx.Limits(max_connections=configuration.connections_max, max_keepalive_connections=configuration.connections_max)
    async with (
        httpx.AsyncClient(limits=limits, timeout=flow.PSP_SECONDS, trust_env=False) as http,
        trio.open_nursery() as nursery,
    ):
        server = Server(configuration, http, nursery)
        app.post("/v1/payments")(server.create)
        config = Config()
        config.bind = [f"fd://{configuration.descriptor}"]
        config.accesslog = None
        await serve(app, config)


if __name__ == "__main__":
    trio.run(run, flow.read_configuration(sys.argv[1]))
