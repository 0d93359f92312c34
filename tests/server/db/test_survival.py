"""The money core under fire: canceled at every checkpoint, two workers with crossing keys, conflicts, a PostgreSQL that is
killed.
"""

import contextlib
import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
import pytest
import trio

from core.evidence import EvidenceKind
from core.ids import PAYMENT, MerchantId, PaymentId, decode_id
from core.money import Money
from core.payment import Capture, Payment, Status
from server import child_process
from server.db.connection import Connection
from server.db.group_commit import CONFLICT_RETRIES_MAX, Committer
from server.db.merchants.merchants import Merchant, find_merchant
from server.db.migrate import migrate
from server.db.payments.change_row import ChangeRow
from server.db.payments.changes import Applied, ChangeGroup, Lost
from server.db.payments.creations import CreationGroup
from server.db.payments.payments import claim_due_payments, find_payment
from server.flows.idempotency import Request
from server.flows.payments.capture import Done, capture
from server.flows.payments.choose import NewPayment
from server.flows.payments.create import Opened, create
from server.flows.payments.refund import Refunded, refund
from server.process import embedded_postgres
from server.uuid7 import uuid7
from tests.support.cancellation import cancelled_at
from tests.support.changes import a_change, a_creation, a_payment
from tests.support.florin import PAID, Florin, eventually, open_florin, order

RUNS_MIN = 200


async def merchant_of(florin: Florin) -> Merchant:
    found = await find_merchant(florin.connection, MerchantId(florin.demo.merchant_id))
    assert found is not None
    return found


async def until_definitive(call: Callable[[], Awaitable[Any]], kind: type[Any]) -> Any:
    """Repeat a request with its key, as the documentation says, until it has its reply."""

    async def ask() -> Any:
        outcome = await call()
        return outcome if isinstance(outcome, kind) and getattr(outcome, "failure", None) is None else replayed(outcome)

    return await eventually(ask, seconds=60)


def replayed(outcome: Any) -> Any:
    return outcome if type(outcome).__name__ == "Replay" else None


async def test_create_and_settle_cancelled_at_every_checkpoint(florin: Florin) -> None:
    """A retry finds whatever a canceled request left: one payment, one charge, one capture, one refund."""
    merchant = await merchant_of(florin)
    ways: list[tuple[str | None, Capture]] = [
        (None, Capture.AUTOMATIC),
        ("tok_paid", Capture.AUTOMATIC),
        ("tok_paid", Capture.MANUAL),
        ("tok_declined", Capture.AUTOMATIC),
    ]
    runs = 0
    while runs < RUNS_MIN:
        for token, how in ways:
            step = 0
            while True:
                step += 1
                runs += 1
                if not await _one_cancelled(florin, merchant, step, token, how):
                    break
    created = await florin.rows("SELECT count(*) AS payments, count(DISTINCT order_id) AS orders FROM payment_requests")
    assert created[0]["payments"] == created[0]["orders"]
    assert len(await florin.rows("SELECT 1 FROM psp_operations WHERE kind IN ('intent', 'charge')")) == created[0]["payments"]


async def _one_cancelled(florin: Florin, merchant: Merchant, step: int, token: str | None, how: Capture) -> bool:
    key = uuid4().hex
    request = Request(id=uuid7(), merchant_id=merchant.id, key=key, fingerprint=os.urandom(32), reply_status=201)
    wanted = NewPayment(
        money=Money(100, "EUR"),
        order_id=key,
        description=None,
        return_url=None,
        expires_in_seconds=600,
        token=token,
        capture=how,
    )

    async def call() -> object:
        return await create(florin.payments, merchant, wanted, request)

    was_cancelled = await cancelled_at(step, call, task=trio.lowlevel.current_task())
    await florin.connection.execute("UPDATE idempotency_keys SET in_flight_until = now() WHERE key = $1", (key,))
    outcome = await create(florin.payments, merchant, wanted, request)
    if isinstance(outcome, Opened):
        expected = {
            (None, Capture.AUTOMATIC): {Status.PENDING},
            ("tok_paid", Capture.AUTOMATIC): {Status.SUCCEEDED},
            ("tok_paid", Capture.MANUAL): {Status.AUTHORIZED},
            ("tok_declined", Capture.AUTOMATIC): {Status.DECLINED, Status.PENDING},  # its second check may be the follow-up job's
        }[token, how]
        assert outcome.payment.status in expected, (step, outcome)
    else:
        assert replayed(outcome)
    return was_cancelled


@pytest.mark.parametrize("verb", ["capture", "refund"])
async def test_operations_cancelled_at_every_checkpoint(florin: Florin, verb: str) -> None:
    merchant = await merchant_of(florin)
    step = 0
    while True:
        step += 1
        how = "manual" if verb == "capture" else "automatic"
        made = (await florin.post(order(confirm=True, token="tok_paid", capture=how, order_id=uuid4().hex))).json()
        payment_id = PaymentId(decode_id(PAYMENT, made["id"]))
        request = Request(id=uuid7(), merchant_id=merchant.id, key=uuid4().hex, fingerprint=os.urandom(32), reply_status=200)

        async def call(payment_id: PaymentId = payment_id, request: Request = request) -> object:
            if verb == "capture":
                return await capture(florin.payments, request, payment_id, 900)
            return await refund(florin.payments, request, payment_id, amount_minor=900, reason=None)

        was_cancelled = await cancelled_at(step, call, task=trio.lowlevel.current_task())
        await florin.connection.execute("UPDATE idempotency_keys SET in_flight_until = now() WHERE key = $1", (request.key,))
        await until_definitive(call, Done if verb == "capture" else Refunded)
        row = await florin.row(made["id"])
        assert (row["captured_minor"] if verb == "capture" else row["refunded_minor"]) == 900
        if not was_cancelled:
            break
    assert step > 8


async def test_two_workers_with_crossing_keys_never_deadlock(database_url: str, connection: Connection) -> None:
    """Two committers change the same payments of the same merchants in opposite orders; sorted locks prevent deadlocks."""
    merchants = [MerchantId(uuid7()) for _ in range(4)]
    workers = [Committer[ChangeRow, Applied | Lost](ChangeGroup(delivery_lease_seconds=30), database_url) for _ in range(2)]
    results: list[Applied | Lost] = []
    async with trio.open_nursery() as nursery:
        for worker in workers:
            await nursery.start(worker.run)
        for _ in range(30):
            payments = [a_payment(merchants[number % 4]) for number in range(24)]
            await CreationGroup(worker_id=uuid7()).write(connection, [a_creation(payment) for payment in payments])

            async def submit(worker: Committer[ChangeRow, Applied | Lost], payment: Payment) -> None:
                results.append(await worker.submit(a_change(payment)))

            async with trio.open_nursery() as callers:
                for payment in payments:
                    callers.start_soon(submit, workers[0], payment)
                for payment in reversed(payments):
                    callers.start_soon(submit, workers[1], payment)
        nursery.cancel_scope.cancel()
    assert sum(isinstance(result, Applied) for result in results) == 30 * 24
    rows = await connection.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert rows == [(0,)]
    assert await connection.query("SELECT count(*) FROM events") == [(30 * 24,)]


async def test_a_claim_in_between_does_not_lose_a_change(database_url: str, connection: Connection) -> None:
    """The follow-up job moves `due_at` of a payment while a group waits for its row: the change is written."""
    payment = a_payment(MerchantId(uuid7()))
    await CreationGroup(worker_id=uuid7()).write(connection, [a_creation(payment)])
    await connection.execute("UPDATE payment_requests SET due_at = now()")
    other = await Connection.open(database_url)
    results: list[Applied | Lost] = []

    async def settle() -> None:
        results.extend(await ChangeGroup(delivery_lease_seconds=30).write(other, [a_change(payment)]))

    async with trio.open_nursery() as nursery, connection.atomic():
        await claim_due_payments(connection, payment.merchant_id, limit=1, lease_seconds=30)
        nursery.start_soon(settle)
        await trio.sleep(0.2)  # until it waits for the row's lock, in another process
    stored = await find_payment(connection, payment.merchant_id, payment.id)
    assert stored is not None
    assert (stored.status, type(results[0])) == (Status.SUCCEEDED, Applied)
    assert await connection.query("SELECT count(*) FROM ledger_entries") == [(2,)]
    other.discard()


class Conflicting(ChangeGroup):
    """Fails as often as a database with two writers does."""

    def __init__(self, errors: Sequence[type[psycopg.Error]]) -> None:
        super().__init__(delivery_lease_seconds=30)
        self.errors = list(errors)

    async def write(self, connection: Connection, items: Sequence[ChangeRow]) -> list[Applied | Lost]:
        if self.errors:
            raise self.errors.pop()("on purpose")
        return await super().write(connection, items)


async def test_conflicts_are_retried(database_url: str, connection: Connection) -> None:
    payment = a_payment(MerchantId(uuid7()))
    await CreationGroup(worker_id=uuid7()).write(connection, [a_creation(payment)])
    errors = random.Random(7).choices(
        [psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected], k=CONFLICT_RETRIES_MAX
    )
    writer = Committer[ChangeRow, Applied | Lost](Conflicting(errors), database_url)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        assert isinstance(await writer.submit(a_change(payment, EvidenceKind.CAPTURED)), Applied)
        nursery.cancel_scope.cancel()


async def test_postgresql_killed_and_restarted_under_load(directory: Path) -> None:
    """Callers get a reply, or 503 or 504; the worker recovers by itself; nothing acknowledged is lost."""
    data = directory / "own"
    data.mkdir(mode=0o711)
    port = _free_port()
    server = embedded_postgres.start(data, port=port)
    await embedded_postgres.until_ready(server)
    connection = await Connection.open(server.url)
    await migrate(connection)
    connection.discard()
    statuses: set[int] = set()
    acknowledged: set[str] = set()
    stop = trio.Event()
    try:
        async with open_florin(server.tcp_url, directory) as florin:
            async with trio.open_nursery() as customers:
                for _ in range(8):
                    customers.start_soon(_buy_until, stop, florin, statuses, acknowledged)
                for how in (signal.SIGKILL, signal.SIGINT):  # a crash, then a fast shutdown
                    await eventually(_more(acknowledged, len(acknowledged) + 20))
                    os.kill(server.process.pid, how)
                    await child_process.wait(server.process)
                    await trio.sleep(0.3)  # callers find no server
                    server = embedded_postgres.start(data, port=port)
                    await embedded_postgres.until_ready(server)
                await eventually(_more(acknowledged, len(acknowledged) + 20), seconds=30)
                stop.set()
            florin.connection.discard()
            florin.connection = await Connection.open(server.tcp_url)

            async def all_settled() -> bool:
                rows = await florin.rows("SELECT id FROM payment_requests WHERE status = 'SUCCEEDED'")
                return acknowledged <= {f"pay_{row['id'].hex}" for row in rows}

            assert await eventually(all_settled, seconds=30)
            await florin.require_promises()
            florin.connection.discard()
    finally:
        with trio.move_on_after(15, shield=True):
            await child_process.stop(server.process, first=signal.SIGINT, seconds=10)
    assert 201 in statuses
    assert statuses <= {201, 502, 503, 504}, statuses


async def _buy_until(stop: trio.Event, florin: Florin, statuses: set[int], acknowledged: set[str]) -> None:
    key = uuid4().hex
    while not stop.is_set():
        with contextlib.suppress(httpx2.TransportError):
            reply = await florin.post(order(), key=key)
            if reply.status_code == 409:  # the first try is still under way
                await trio.sleep(0.1)
                continue
            statuses.add(reply.status_code)
            if reply.status_code == 201 and (await florin.pay(reply.json(), PAID)).status_code in (200, 303):
                acknowledged.add(reply.json()["id"])
                key = uuid4().hex
        await trio.sleep(0.02)


def _more(found: set[str], count: int) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        await trio.lowlevel.checkpoint()
        return len(found) > count

    return ask


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
