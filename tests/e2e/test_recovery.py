"""Parts that die, hang or are told to end, under load: how long there is no service, and how many requests are cut."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx2
import msgspec
import pytest
import trio

from server.db.connection import Connection
from server.db.doctor.run import broken_promises
from server.process.instance import Instance, Options, open_instance
from tests.support.florin import eventually, order, until

pytestmark = pytest.mark.slow

CUSTOMERS = 8
TERMINATIONS = 6
TERMINATIONS_LONG = 20


@dataclass
class Load:
    """Customers with connections of their own that charge without pause. `cut` are requests whose connection was lost."""

    instance: Instance
    answers: dict[int, int] = field(default_factory=dict)
    cut: int = 0
    last_ok: float = 0.0
    longest_gap_seconds: float = 0.0

    async def run(self) -> None:
        """One customer, with a keep-alive connection."""
        headers = {"authorization": f"Bearer {self.instance.demo.api_key}"}
        async with httpx2.AsyncClient(timeout=15, limits=httpx2.Limits(max_connections=1)) as http:
            while True:
                key = uuid4().hex
                content = msgspec.json.encode(order(order_id=key, confirm=True, token="tok_paid"))
                try:
                    reply = await http.post(
                        f"{self.instance.api_url}/v1/payments", content=content, headers={**headers, "idempotency-key": key}
                    )
                except httpx2.HTTPError:
                    self.cut += 1
                    continue
                self.answers[reply.status_code] = self.answers.get(reply.status_code, 0) + 1
                if reply.status_code == 201:
                    now = trio.current_time()
                    self.longest_gap_seconds = max(self.longest_gap_seconds, now - self.last_ok)
                    self.last_ok = now
                await trio.sleep(0.01)

    async def until_served(self, seconds: float = 30.0) -> float:
        """Wait until payments are charged again, and return the longest time without one so far."""
        charged = self.answers.get(201, 0)

        async def more() -> bool:
            await trio.lowlevel.checkpoint()
            return self.answers.get(201, 0) > charged + 5

        await eventually(more, seconds=seconds)
        gap, self.longest_gap_seconds = self.longest_gap_seconds, 0.0
        return gap


@asynccontextmanager
async def loaded(directory: Path, *, workers: int = 2) -> AsyncIterator[tuple[Instance, Load]]:
    """An instance under load. At the end every promise must be kept."""
    settings = {"FLORIN_LOG_LEVEL": "error"}
    options = Options(data_directory=directory, workers=workers, port=0, psp_port=0, shop_port=0, settings=settings)
    async with open_instance(options) as instance:
        load = Load(instance, last_ok=trio.current_time())
        async with trio.open_nursery() as customers:
            for _ in range(CUSTOMERS):
                customers.start_soon(load.run)
            await load.until_served()
            yield instance, load
            customers.cancel_scope.cancel()
        connection = await Connection.open(instance.database_url)
        violations = await broken_promises(connection)
        connection.discard()
        assert not violations, "\n".join(f"{one.check.name}: {one.columns} {one.rows}" for one in violations)


async def test_parts_that_die_are_started_again(directory: Path) -> None:
    """PostgreSQL with its crash recovery, the sandbox, a worker, a worker that is stopped: payments go on by themselves."""
    async with loaded(directory) as (instance, load):
        assert instance.postgres is not None
        victims = (
            ("PostgreSQL", instance.postgres.pid, signal.SIGKILL, 20.0),
            ("the sandbox", instance.sandbox.pid, signal.SIGKILL, 15.0),
            ("a worker", instance.supervisor.pids[0], signal.SIGKILL, 5.0),
            ("a stopped worker", instance.supervisor.pids[1], signal.SIGSTOP, 15.0),
        )
        for name, pid, how, seconds_max in victims:
            os.kill(pid, how)
            await trio.sleep(1.0 if how is signal.SIGKILL else 12.0)
            gap = await load.until_served()
            print(f"{name}: {gap:.1f} s without a charged payment, answers so far {load.answers}, cut {load.cut}")
            assert gap < seconds_max
        assert instance.postgres.restarts == 1
        assert instance.sandbox.restarts == 1
        assert instance.supervisor.restarts >= 2


async def test_a_worker_that_is_told_to_end_cuts_no_request(directory: Path, request: pytest.FixtureRequest) -> None:
    terminations = TERMINATIONS_LONG if request.config.getoption("--long") else TERMINATIONS
    async with loaded(directory) as (instance, load):
        for number in range(terminations):
            victim = instance.supervisor.pids[number % 2]
            os.kill(victim, signal.SIGTERM)

            async def is_replaced(victim: int = victim) -> bool:
                await trio.lowlevel.checkpoint()
                return victim not in instance.supervisor.pids and instance.supervisor.accepting == 2

            await eventually(is_replaced)
            await load.until_served()
        print(f"{terminations} terminations: {load.cut} requests cut, answers {load.answers}")
        assert load.cut == 0
        assert set(load.answers) == {201}


async def test_while_no_worker_can_start_requests_are_refused_at_once(directory: Path) -> None:
    """The only worker stands still: until it is replaced its parent answers."""
    settings = {"FLORIN_LOG_LEVEL": "error"}
    options = Options(data_directory=directory, workers=1, port=0, psp_port=0, shop_port=0, settings=settings)
    async with open_instance(options) as instance, httpx2.AsyncClient(timeout=5) as http:
        os.kill(instance.supervisor.pids[0], signal.SIGSTOP)

        async def refused() -> bool:
            try:
                reply = await http.get(f"{instance.api_url}/readyz")
            except httpx2.HTTPError:
                return False
            return reply.status_code == 503 and reply.json()["code"] == "overloaded"

        await eventually(refused)


async def test_a_worker_that_cannot_be_replaced_leaves_the_others_at_work(directory: Path) -> None:
    """As after `florin migrate` by a newer version: a new worker of this one refuses the schema, and the old ones serve on."""
    async with loaded(directory) as (instance, load):
        connection = await Connection.open(instance.database_url)
        await connection.execute("INSERT INTO schema_migrations (number, name, sha256) VALUES (9999, 'newer', '')")
        os.kill(instance.supervisor.pids[0], signal.SIGKILL)
        await until(lambda: instance.supervisor.restarts >= 4)
        assert instance.supervisor.accepting == 1
        await load.until_served()
        await connection.execute("DELETE FROM schema_migrations WHERE number = 9999")
        await until(lambda: instance.supervisor.accepting == 2)
        connection.discard()


async def test_the_key_of_a_request_whose_worker_died_is_soon_free(directory: Path) -> None:
    settings = {"FLORIN_LOG_LEVEL": "error"}
    options = Options(data_directory=directory, workers=1, port=0, psp_port=0, shop_port=0, settings=settings)
    async with open_instance(options) as instance, httpx2.AsyncClient(timeout=15) as http:
        await http.post(f"{instance.running.psp_url}/control", json={"create": "hang"})
        headers = {"authorization": f"Bearer {instance.demo.api_key}", "idempotency-key": "k"}
        content = msgspec.json.encode(order(confirm=True, token="tok_paid"))

        async def ask() -> httpx2.Response | None:
            try:
                return await http.post(f"{instance.api_url}/v1/payments", content=content, headers=headers)
            except httpx2.HTTPError:
                return None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            connection = await Connection.open(instance.database_url)
            await eventually(lambda: connection.query("SELECT 1 FROM idempotency_keys"))
            os.kill(instance.supervisor.pids[0], signal.SIGKILL)
        await http.post(f"{instance.running.psp_url}/control", json={"create": "answer"})
        killed_at = trio.current_time()

        async def charged() -> bool:
            reply = await ask()
            return reply is not None and reply.status_code == 201

        await eventually(charged)
        took_seconds = trio.current_time() - killed_at
        print(f"the key of a killed request was free after {took_seconds:.1f} s")
        assert took_seconds < 6.0
        assert not await broken_promises(connection)
        connection.discard()
