"""kill -9 of the worker in the middle of deliveries: every event arrives, a repetition has the same id, and order is kept."""

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import trio

from server.db.connection import Connection
from server.db.doctor.run import broken_promises
from server.http.asgi import Receive, Scope, Send
from server.process.instance import Instance, Options, open_instance
from tests.support.florin import eventually, order
from tests.support.receiver import Receiver, receiving

pytestmark = pytest.mark.slow

KILLS, KILLS_LONG = 3, 50
CUSTOMERS = 4


class Holding(Receiver):
    """Holds the next request while `armed`, like an endpoint whose answer is on its way when the worker dies."""

    armed = False
    in_hand: trio.Event
    held: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if self.armed:
            self.armed = False
            with suppress(OSError):
                await super().__call__(scope, receive, self._hold)
        else:
            await super().__call__(scope, receive, send)

    async def _hold(self, _: Any) -> None:
        self.held = self.seqs[-1]
        self.in_hand.set()
        await trio.sleep_forever()


@pytest.mark.timeout(900)
async def test_no_event_is_lost_when_its_worker_is_killed_in_the_middle(directory: Path, request: pytest.FixtureRequest) -> None:
    kills = KILLS_LONG if request.config.getoption("--long") else KILLS
    settings = {"FLORIN_DELIVERY_SECONDS": "1", "FLORIN_LOG_LEVEL": "error", "FLORIN_SWEEP_SECONDS": "0.2"}
    options = Options(data_directory=directory, workers=1, port=0, psp_port=0, shop_port=0, settings=settings)
    async with open_instance(options) as instance, receiving(Holding) as parallel, receiving(Holding) as ordered:
        assert isinstance(parallel, Holding)
        assert isinstance(ordered, Holding)
        async with httpx2.AsyncClient(timeout=30) as http:
            for receiver, mode in ((parallel, "parallel"), (ordered, "ordered")):
                body = {"url": receiver.url, "mode": mode}
                assert (await _ask(instance, http, "webhook-endpoints", body)).status_code == 201
            stop = trio.Event()
            async with trio.open_nursery() as customers:
                for _ in range(CUSTOMERS):
                    customers.start_soon(_charge_until, stop, instance, http)
                for kill in range(kills):
                    await _kill_in_the_middle(instance, parallel if kill % 2 else ordered)
                stop.set()
        await _require_all_delivered(instance, parallel, ordered)
    print(
        f"kill -9 x {kills} in the middle of a delivery: {len(set(parallel.seqs))} events, {len(parallel.got)} and "
        f"{len(ordered.got)} deliveries, none lost, none out of order"
    )


async def _kill_in_the_middle(instance: Instance, receiver: Holding) -> None:
    receiver.in_hand, receiver.armed = trio.Event(), True
    with trio.fail_after(60):
        await receiver.in_hand.wait()
    victim = instance.supervisor.pids[0]
    os.kill(victim, signal.SIGKILL)
    before = receiver.seqs.count(receiver.held)

    async def replaced() -> bool:
        await trio.lowlevel.checkpoint()
        return victim not in instance.supervisor.pids

    await eventually(replaced, seconds=30)

    async def delivered() -> bool:
        await trio.lowlevel.checkpoint()
        return receiver.seqs.count(receiver.held) > before

    await eventually(delivered, seconds=30)  # otherwise one event would be killed ten times, and become a dead letter


async def _charge_until(stop: trio.Event, instance: Instance, http: httpx2.AsyncClient) -> None:
    """A shop that repeats with the same key until it has an answer."""
    while not stop.is_set():
        body = order(order_id=uuid4().hex, confirm=True, token="tok_paid")
        key = uuid4().hex

        async def paid(body: dict[str, Any] = body, key: str = key) -> bool:
            with suppress(httpx2.TransportError):
                return (await _ask(instance, http, "payments", body, key=key)).status_code == 201
            return False

        await eventually(paid, seconds=60)


async def _ask(
    instance: Instance, http: httpx2.AsyncClient, path: str, body: dict[str, Any], *, key: str | None = None
) -> httpx2.Response:
    headers = {"authorization": f"Bearer {instance.demo.api_key}", "idempotency-key": key or uuid4().hex}
    return await http.post(f"{instance.api_url}/v1/{path}", json=body, headers=headers)


async def _require_all_delivered(instance: Instance, parallel: Receiver, ordered: Receiver) -> None:
    connection = await Connection.open(instance.database_url)
    try:
        await eventually(_delivered(connection), seconds=60)
        last = (await connection.query("SELECT max(seq) FROM events"))[0][0]
        assert await broken_promises(connection) == []
    finally:
        connection.discard()
    for receiver in (parallel, ordered):
        assert set(receiver.seqs) == set(range(1, last + 1))
        ids = {(one.event["seq"], one.event["id"], one.headers["webhook-id"]) for one in receiver.got}
        assert len(ids) == last, "what is repeated has the same id"
    assert ordered.seqs == sorted(ordered.seqs), "a repetition comes before what follows it"


def _delivered(connection: Connection) -> Callable[[], Awaitable[bool]]:
    async def delivered() -> bool:
        return not await connection.query("SELECT 1 FROM deliveries WHERE state <> 'DELIVERED' LIMIT 1")

    return delivered
