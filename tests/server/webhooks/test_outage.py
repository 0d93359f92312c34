"""An endpoint that is down for 75 hours, in virtual time: trio's clock and PostgreSQL's `now()` jump together.

PostgreSQL's clock is replaced, for the sessions of this test only, by a function in a schema that comes first in the search path;
every statement is the real one. Whatever happens, each event is delivered or becomes a dead letter, and order is kept.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing

from core.ids import EndpointId, EventId, MerchantId, PspAccountId
from server.concurrency.worker_count import WorkerCount
from server.db.connection import Connection
from server.db.database import RESULT_GATHER_SECONDS, Database, open_database
from server.db.events.events import append_event
from server.db.merchants.merchants import Merchant, add_merchant
from server.db.webhooks.endpoints import Endpoint, EndpointMode, add_endpoint
from server.flows.events.live_feeds import Feeds
from server.flows.webhooks.endpoints import generate_secret, seal_secret
from server.flows.webhooks.send import Sender
from server.http.client.client import open_client
from server.jobs.webhooks.endpoint_queue import Timing
from server.jobs.webhooks.parallel import Deliverer
from server.sealing import Sealer
from server.telemetry import Metrics
from server.uuid7 import uuid7
from tests.support.receiver import Receiver, always, receiving

START = datetime(2026, 11, 22, tzinfo=UTC)
OUTAGE_HOURS = 75
EVENTS = 12
EVERY_HOURS = 6
LOOKS_MAX = 2_000
DELIVERIES_LAST_HOURS = 90
_CLOCK = """
CREATE SCHEMA virtual;
CREATE TABLE virtual.clock (moment timestamptz NOT NULL);
INSERT INTO virtual.clock VALUES ('2026-11-22Z');
CREATE FUNCTION virtual.now() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT moment FROM virtual.clock';
GRANT USAGE ON SCHEMA virtual TO PUBLIC;
GRANT SELECT ON virtual.clock TO PUBLIC;
"""


@dataclass
class World:
    """Everything that has a clock."""

    clock: trio.testing.MockClock
    connection: Connection
    database: Database
    deliverer: Deliverer
    began: float = field(default_factory=trio.current_time)

    @property
    def now(self) -> datetime:
        """Virtual time."""
        return START + timedelta(seconds=trio.current_time() - self.began)

    async def jump(self, seconds: float) -> None:
        """Advance by that much at once, and wait until nothing is left to do then."""
        await self._pass(seconds)
        sweeps, calm, looks = self.deliverer.sweeps, 0, 0
        while calm < 3 or self.deliverer.sweeps == sweeps:
            await trio.to_thread.run_sync(time.sleep, 0.001)  # real time, for sockets and PostgreSQL
            calm = calm + 1 if self.deliverer.is_idle() else 0
            looks += 1
            if looks % LOOKS_MAX == 0:
                await self._pass(1.1)
            elif not self.database.delivery_results.is_idle:
                await self._pass(RESULT_GATHER_SECONDS)

    async def _pass(self, seconds: float) -> None:
        moment = self.now + timedelta(seconds=seconds)
        await self.connection.execute("UPDATE virtual.clock SET moment = $1", (moment,))
        self.clock.jump(seconds)

    async def until(self, hours: float) -> None:
        """Let time pass to then, from one due time to the next."""
        end = START + timedelta(hours=hours)
        while self.now < end:
            rows = await self.connection.query(
                """
                SELECT min(at) FROM (
                    SELECT min(due_at) AS at FROM deliveries WHERE due_at IS NOT NULL
                    UNION ALL SELECT min(held_until) FROM webhook_endpoints WHERE held_until > now()) x
                """
            )
            due = rows[0][0] or end
            await self.jump(max(min((min(due, end) - self.now).total_seconds(), 86_400), 0) + 1.1)


@asynccontextmanager
async def world(url: str, clock: trio.testing.MockClock) -> AsyncIterator[tuple[World, Sealer]]:
    """A deliverer whose PostgreSQL shares its clock."""
    setup = await Connection.open(url)
    for statement in filter(str.strip, _CLOCK.split(";\n")):
        await setup.execute(statement)
    setup.discard()
    virtual = f"{url}?options=-csearch_path%3Dvirtual,pg_catalog,public"
    connection = await Connection.open(virtual)
    sealer = Sealer(bytes(32))
    made: list[World] = []
    async with (
        open_database(virtual, worker_id=uuid7(), pool_size=4, delivery_lease_seconds=30) as db,
        open_client() as http,
        trio.open_nursery() as nursery,
    ):
        feeds = Feeds(db.pool, WorkerCount())
        sender = Sender(db.pool, http, http, sealer, attempt_seconds=15, now=lambda: made[0].now, publish=feeds.publish)
        timing = Timing(lease_seconds=30, sweep_seconds=1.0)
        made.append(World(clock, connection, db, Deliverer(db, sender, Metrics(), WorkerCount(), timing)))
        await nursery.start(made[0].deliverer.run)
        yield made[0], sealer
        nursery.cancel_scope.cancel()
    connection.discard()


@pytest.mark.parametrize("hours", [OUTAGE_HOURS, 0])
async def test_an_outage_of_75_hours(database_url: str, mock_clock: trio.testing.MockClock, hours: int) -> None:
    async with world(database_url, mock_clock) as (it, sealer), receiving() as parallel, receiving() as ordered:
        merchant = Merchant(MerchantId(uuid7()), "Shop", "test", PspAccountId(uuid7()), START)
        await add_merchant(it.connection, merchant)
        for receiver, mode in ((parallel, EndpointMode.PARALLEL), (ordered, EndpointMode.ORDERED)):
            receiver.answer = always(503)
            await add_endpoint(it.connection, _endpoint(sealer, merchant.id, receiver, mode))
        told = 0
        for hour in range(0, DELIVERIES_LAST_HOURS + 80, EVERY_HOURS):
            if hour >= hours:
                parallel.answer = ordered.answer = always(200)
            if told < EVENTS:
                told += 1
                await append_event(
                    it.connection, merchant.id, EventId(uuid7()), event_type="payment.succeeded", data=b"{}", now=it.now
                )
            await it.until(hour + EVERY_HOURS)
        await _require_all_ended(it, parallel, ordered, told)


def _endpoint(sealer: Sealer, merchant_id: MerchantId, receiver: Receiver, mode: EndpointMode) -> Endpoint:
    endpoint_id = EndpointId(uuid7())
    sealed = seal_secret(sealer, generate_secret(), merchant_id=merchant_id, endpoint_id=endpoint_id)
    return Endpoint(
        id=endpoint_id,
        merchant_id=merchant_id,
        url=receiver.url,
        sealed_secret=sealed,
        created_at=START,
        updated_at=START,
        mode=mode,
    )


async def _require_all_ended(it: World, parallel: Receiver, ordered: Receiver, told: int) -> None:
    rows = await it.connection.query(
        """
        SELECT e.mode, d.event_seq, d.state, d.attempts FROM deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id
         ORDER BY e.mode, d.event_seq
        """
    )
    assert len(rows) == 2 * told
    assert {row[2] for row in rows} <= {"DELIVERED", "DEAD"}
    assert all(row[3] == 10 for row in rows if row[2] == "DEAD"), "a dead letter has used its attempts up"
    for mode, receiver in (("parallel", parallel), ("ordered", ordered)):
        delivered = {row[1] for row in rows if row[:1] == (mode,) and row[2] == "DELIVERED"}
        attempts = {row[1]: row[3] for row in rows if row[0] == mode}
        assert delivered
        for seq, count in attempts.items():
            assert receiver.seqs.count(seq) == count, "every attempt is one request"
    assert ordered.seqs == sorted(ordered.seqs), "what failed held back what came after it"
    endpoints = await it.connection.query("SELECT enabled, failing_since FROM webhook_endpoints")
    assert endpoints == [(True, None)] * 2
