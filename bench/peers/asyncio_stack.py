"""`python -m bench.peers.asyncio_stack CONFIGURATION`: Starlette on uvicorn (uvloop, httptools), asyncpg, aiohttp."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.peers import flow

DATABASE_CONNECTIONS = 16
_JSON = "application/json"


class Server:
    """Shared by the handlers."""

    def __init__(self, configuration: flow.Configuration, pool: Any, http: aiohttp.ClientSession) -> None:
        self._configuration = configuration
        self._pool = pool
        self._http = http
        self._merchants: dict[str, UUID] = {}
        self._endpoints: dict[UUID, list[tuple[UUID, str]]] = {}
        self._deliveries: set[asyncio.Task[None]] = set()

    async def create(self, request: Request) -> Response:
        """`POST /v1/payments`."""
        merchant_id = await self._merchant_of(request.headers.get("authorization", "").removeprefix("Bearer "))
        key = request.headers.get("idempotency-key")
        if merchant_id is None or key is None:
            return Response(b"{}", 401 if merchant_id is None else 400, media_type=_JSON)
        payment = flow.new_payment(merchant_id, key, await request.body())
        stored = await self._accept(payment)
        if stored is not None:
            return stored
        timeout = aiohttp.ClientTimeout(total=flow.PSP_SECONDS)
        headers = {"content-type": _JSON, "idempotency-key": str(payment.operation_id)}
        url = f"{self._configuration.psp_url}/v1/intents"
        async with self._http.post(url, data=payment.psp_body(), headers=headers, timeout=timeout) as answer:
            reference = flow.read_reference(await answer.read(), payment)
        body = await self._capture(payment, reference)
        return Response(body, 201, media_type=_JSON)

    async def _merchant_of(self, key: str) -> UUID | None:
        merchant_id = self._merchants.get(key)
        if merchant_id is None:
            merchant_id = await self._pool.fetchval(flow.MERCHANT_OF_KEY, flow.key_hash(key))
            if merchant_id is not None:
                rows = await self._pool.fetch(flow.ENDPOINTS, merchant_id)
                self._endpoints[merchant_id] = [(row[0], row[1]) for row in rows]
                self._merchants[key] = merchant_id
        return merchant_id

    async def _accept(self, payment: flow.Payment) -> Response | None:
        async with self._pool.acquire() as connection, connection.transaction():
            statement, values = payment.own_key()
            if await connection.execute(statement, *values) == "INSERT 0 1":
                for statement, values in payment.accepted(self._configuration.psp_account_id):
                    await connection.execute(statement, *values)
                return None
            stored = await connection.fetchrow(flow.FIND_KEY, payment.merchant_id, payment.key)
        if stored["fingerprint"] != payment.fingerprint:
            return Response(b"{}", 422, media_type=_JSON)
        if stored["reply_status"] is None:
            return Response(b"{}", 409, media_type=_JSON)
        return Response(stored["reply_body"], stored["reply_status"], media_type=_JSON)

    async def _capture(self, payment: flow.Payment, reference: str) -> bytes:
        body, now, event_id = payment.rendered(reference), datetime.now(UTC), flow.uuid7()
        endpoints = self._endpoints[payment.merchant_id]
        async with self._pool.acquire() as connection, connection.transaction():
            done = await connection.execute(flow.CAPTURE_PAYMENT, payment.merchant_id, payment.id, reference, now)
            assert done == "UPDATE 1"
            for statement, values in payment.captured(reference, body, now):
                await connection.execute(statement, *values)
            seq, last_entry = await connection.fetchrow(flow.NEXT_NUMBERS, payment.merchant_id)
            for statement, values in payment.posted(self._configuration.psp_account_id, event_id, seq, last_entry, body, now):
                await connection.execute(statement, *values)
            due_at = now + timedelta(seconds=30)
            for endpoint_id, _ in endpoints:
                await connection.execute(flow.INSERT_DELIVERY, payment.merchant_id, endpoint_id, seq, due_at, now)
        message = flow.envelope(event_id, seq, body, now)
        for endpoint_id, url in endpoints:
            task = asyncio.create_task(self._deliver(payment.merchant_id, endpoint_id, url, seq, event_id, message))
            self._deliveries.add(task)
            task.add_done_callback(self._deliveries.discard)
        return body

    async def _deliver(self, merchant_id: UUID, endpoint_id: UUID, url: str, seq: int, event_id: UUID, message: bytes) -> None:
        headers = flow.signed_headers(self._configuration.webhook_secret, event_id, message)
        async with self._http.post(url, data=message, headers=headers) as answer:
            await answer.read()
        if answer.status < 300:
            await self._pool.execute(flow.END_DELIVERY, merchant_id, endpoint_id, seq, answer.status, datetime.now(UTC))


def application(configuration: flow.Configuration) -> Starlette:
    """The application."""
    servers: list[Server] = []

    async def create(request: Request) -> Response:
        return await servers[0].create(request)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=configuration.connections_max)
        count = DATABASE_CONNECTIONS
        async with (
            asyncpg.create_pool(configuration.database_url, min_size=count, max_size=count) as pool,
            aiohttp.ClientSession(connector=connector) as http,
        ):
            servers.append(Server(configuration, pool, http))
            yield

    return Starlette(routes=[Route("/v1/payments", create, methods=["POST"])], lifespan=lifespan)


def main() -> None:
    """Serve until killed."""
    configuration = flow.read_configuration(sys.argv[1])
    options = uvicorn.Config(
        application(configuration), loop="uvloop", http="httptools", access_log=False, log_level="warning", lifespan="on"
    )
    uvicorn.Server(options).run(sockets=[socket.socket(fileno=configuration.descriptor)])


if __name__ == "__main__":
    main()
