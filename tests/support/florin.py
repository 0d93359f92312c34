"""A running Florin for tests, with the acts of a shop, a customer and an operator."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
import msgspec
import trio

from core.ids import MERCHANT, PAYMENT, MerchantId, PayoutId, decode_id, encode_id
from core.money import Money
from core.payout import Payout, PayoutStatus
from server.clock import utc_now
from server.db.connection import Connection
from server.db.doctor.run import broken_promises
from server.db.merchants.audit import Act
from server.flows.contexts import Contexts, Payments
from server.flows.ledger import payouts
from server.http.server.listener import bind
from server.process.demo import Demo, load_or_generate, provision
from server.process.worker import open_worker
from server.psp.rate_schedule import Shared
from server.sandbox.program import SandboxConfiguration, open_sandbox
from server.sealing import Sealer, create_key_file
from server.settings import Settings
from server.uuid7 import uuid7

PAID = "4242424242424242"
REFUSED = "4000000000000002"
BLOCKED = "4000000000000069"
TIMEOUT_SECONDS = 15.0
LOOKS_MAX = 50_000

T = TypeVar("T")


async def _at_once(_slots: int, _interval_seconds: float) -> float:
    await trio.lowlevel.checkpoint()
    return 0.0


async def _soon(_interval_seconds: float) -> float | None:
    await trio.lowlevel.checkpoint()
    return 0.0


async def _yes() -> bool:
    await trio.lowlevel.checkpoint()
    return True


UNSHARED = Shared(reserve=_at_once, reserve_soon=_soon, may_probe=_yes)
"""For a guard that shares its account with nobody."""


async def eventually(ask: Callable[[], Awaitable[T | None]], *, seconds: float = TIMEOUT_SECONDS) -> T:
    """Ask another process again and again until it has an answer, because it sends no event."""
    with trio.fail_after(seconds):
        while True:
            answer = await ask()
            if answer:
                return answer
            await trio.sleep(0.02)


async def until(is_so: Callable[[], bool], *, seconds: float = TIMEOUT_SECONDS) -> None:
    """Wait for something that only the passage of bytes through the kernel brings about."""

    async def ask() -> bool:
        await trio.lowlevel.checkpoint()
        return is_so()

    await eventually(ask, seconds=seconds)


@dataclass
class Florin:
    """The addresses, the demo merchant, and clients."""

    api_url: str
    psp_url: str
    shop_url: str
    database_url: str
    demo: Demo
    http: httpx2.AsyncClient
    connection: Connection
    contexts: Contexts
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def payments(self) -> Payments:
        """The context of the worker's payment flows."""
        return self.contexts.payments

    async def post(self, body: Any, *, key: str | None = None, headers: dict[str, str] | None = None) -> httpx2.Response:
        """POST /v1/payments; a body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        wanted = {**self.headers, "idempotency-key": key or uuid4().hex, **(headers or {})}
        return await self.http.post(f"{self.api_url}/v1/payments", content=content, headers=wanted)

    async def create(self, **fields: Any) -> dict[str, Any]:
        """A new payment that must be accepted."""
        response = await self.post(order(**fields))
        assert response.status_code == 201, response.text
        payment: dict[str, Any] = response.json()
        return payment

    async def read(self, payment_id: str) -> dict[str, Any]:
        """GET /v1/payments/{id}."""
        response = await self.http.get(f"{self.api_url}/v1/payments/{payment_id}", headers=self.headers)
        assert response.status_code == 200, response.text
        payment: dict[str, Any] = response.json()
        return payment

    async def pay(self, payment: dict[str, Any], card: str = PAID) -> httpx2.Response:
        """Submit the hosted page's form."""
        return await self.http.post(payment["payment_url"], data={"card": card})

    async def control(self, **faults: object) -> dict[str, Any]:
        """Set faults of the sandbox PSP."""
        answer: dict[str, Any] = (await self.http.post(f"{self.psp_url}/control", json=faults)).json()
        return answer

    async def row(self, payment_id: str) -> dict[str, Any]:
        """The payment as it is stored."""
        return (await self.rows("SELECT * FROM payment_requests WHERE id = $1", decode_id(PAYMENT, payment_id)))[0]

    async def rows(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        """Rows of any query, by column name."""
        cursor = await self.connection.execute(sql, params or None)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def until_stored(self, payment_id: str, status: str) -> dict[str, Any]:
        """Wait until the payment is stored with a status, without reading it over the API, which would check at the PSP."""

        async def stored() -> dict[str, Any] | None:
            row = await self.row(payment_id)
            return row if row["status"] == status else None

        return await eventually(stored)

    async def until_told(self, payment_id: str, event_type: str) -> dict[str, Any]:
        """Wait until the shop has received an event."""

        async def told() -> dict[str, Any] | None:
            events: list[dict[str, Any]] = (await self.http.get(f"{self.shop_url}/events")).json()
            return next((one for one in events if one["type"] == event_type and one["data"]["id"] == payment_id), None)

        return await eventually(told)

    async def until_event(self, event_type: str, object_id: str) -> dict[str, Any]:
        """Wait until an event about an object is written."""

        async def written() -> dict[str, Any] | None:
            rows = await self.rows("SELECT type, data FROM events WHERE type = $1", event_type)
            return next((row for row in rows if msgspec.json.decode(row["data"])["id"] == object_id), None)

        return await eventually(written)

    async def spend(self, amount_minor: int) -> None:
        """Pay out that much of the merchant's money."""
        merchant_id, payout_id, now = MerchantId(self.demo.merchant_id), PayoutId(uuid7()), utc_now()
        money = Money(amount_minor, "EUR")

        def act(actor: str) -> Act:
            return Act(id=uuid7(), merchant_id=merchant_id, actor=actor, action="payout", detail="", at=utc_now())

        payout = Payout(
            id=payout_id,
            merchant_id=merchant_id,
            money=money,
            status=PayoutStatus.PENDING,
            requested_by="Ada",
            approved_by=None,
            reference=None,
            failure=None,
            created_at=now,
            updated_at=now,
        )
        await payouts.add_payout(self.connection, payout, act("Ada"))
        await payouts.approve(self.connection, merchant_id, payout_id, act("Grace"))
        await payouts.end(self.connection, merchant_id, payout_id, PayoutStatus.SUCCEEDED, act("Grace"))

    async def wallets(self) -> list[dict[str, Any]]:
        """GET /v1/wallets."""
        found: list[dict[str, Any]] = (await self.http.get(f"{self.api_url}/v1/wallets", headers=self.headers)).json()["data"]
        return found

    async def require_promises(self) -> None:
        """The doctor must find nothing."""
        violations = await broken_promises(self.connection)
        assert not violations, "\n".join(f"{one.check.name}: {one.columns} {one.rows}" for one in violations)

    @property
    def merchant_text(self) -> str:
        """The demo merchant's public id."""
        return encode_id(MERCHANT, self.demo.merchant_id)


async def _until_list_was_read(connection: Connection) -> None:
    """Wait without sleeping in between, because trio's clock may stand still."""
    for _ in range(LOOKS_MAX):
        if await connection.query("SELECT 1 FROM psp_states WHERE events_read_until IS NOT NULL AND events_due_at IS NULL"):
            return
    raise AssertionError("the PSP's list of events was not read")


def order(**fields: Any) -> dict[str, Any]:
    """The body of a payment request."""
    return {"amount": 1_990, "currency": "EUR", "order_id": "order-1", **fields}


@asynccontextmanager
async def open_florin(
    database_url: str, directory: Path, *, now: Callable[[], datetime] | None = None, **settings: Any
) -> AsyncIterator[Florin]:
    """A worker, the sandbox and the shop in this process."""
    key_file = directory / "sealing.key"
    create_key_file(key_file)
    demo = load_or_generate(directory / "demo.json")
    sockets = [bind("127.0.0.1", 0) for _ in range(3)]
    api_url, psp_url, shop_url = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    connection = await Connection.open(database_url)
    await provision(connection, demo, Sealer.from_file(key_file), psp_url=psp_url, shop_url=shop_url, now=utc_now())
    configuration = SandboxConfiguration(
        florin_url=api_url,
        psp_url=psp_url,
        psp_api_key=demo.psp_api_key,
        psp_webhook_url=demo.psp_webhook_url(api_url),
        psp_webhook_secret=demo.psp_webhook_secret,
        shop_url=shop_url,
        shop_api_key=demo.api_key,
        shop_webhook_secret=demo.webhook_secret,
    )
    wanted = Settings(
        database_url=database_url,
        key_file=key_file,
        webhook_networks="127.0.0.0/8",
        **{
            "sweep_seconds": 0.05,
            "drain_seconds": 2.0,
            "linger_seconds": 0.0,
            "psp_seconds": 3.0,
            "delivery_seconds": 3.0,
            **settings,
        },
    )
    try:
        async with (
            open_sandbox(configuration, sockets[1], sockets[2]),
            open_worker(wanted, sockets[0], now=now) as (contexts, _),
            httpx2.AsyncClient(timeout=30) as http,
        ):
            headers = {"authorization": f"Bearer {demo.api_key}"}
            # The PSP's list is read at the start and then not for a while, so that a test knows the source of an event.
            await _until_list_was_read(connection)
            yield Florin(api_url, psp_url, shop_url, database_url, demo, http, connection, contexts, headers)
    finally:
        connection.discard()
