"""Clocks that stand wrong, moved by libfaketime under load: nothing is charged twice, and all recovers once they are right."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx2
import msgspec
import pytest
import trio

from server import child_process
from server.db.connection import Connection
from server.db.doctor.run import broken_promises
from server.http.server.listener import bind
from server.process import embedded_postgres
from server.process.instance import Instance, Options, open_instance
from server.process.worker_link import pair
from tests.conftest import make_reachable_directory, program
from tests.support.florin import eventually, order

pytestmark = pytest.mark.slow

OFFSETS = ("+1h", "-1h", "+31d", "-31d")
CUSTOMERS = 4
RATE = 40
BACK_SECONDS_MAX = 20.0
_LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1")


class Clock:
    """A clock of other processes, which starts right."""

    def __init__(self, path: Path) -> None:
        program("faketime")
        self._path = path
        self.set("+0")

    def set(self, offset: str) -> None:
        """Move it, relative to the right time."""
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(offset)
        unfinished.chmod(0o644)
        unfinished.replace(self._path)

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of a process that goes by it."""
        return {
            "LD_PRELOAD": next(one for one in _LIBRARIES if Path(one).exists()),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }


@dataclass
class Load:
    """Customers that charge tokens, and afterwards send every request again."""

    instance: Instance
    http: httpx2.AsyncClient
    acknowledged: dict[str, str] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    customers: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def charge(self, key: str) -> httpx2.Response | None:
        headers = {"authorization": f"Bearer {self.instance.demo.api_key}", "idempotency-key": key}
        content = msgspec.json.encode(order(order_id=key, confirm=True, token="tok_paid"))
        try:
            return await self.http.post(f"{self.instance.api_url}/v1/payments", content=content, headers=headers)
        except httpx2.HTTPError:
            return None

    async def run(self) -> None:
        while True:
            key = uuid4().hex
            self.sent.append(key)
            reply = await self.charge(key)
            if reply is not None and reply.status_code == 201:
                self.acknowledged[key] = reply.json()["id"]
            await trio.sleep(0.05)

    async def until_served(self, *, seconds: float = BACK_SECONDS_MAX) -> float:
        """Wait until a new payment is charged. Returns how long that took."""
        began = trio.current_time()

        async def served() -> bool:
            key = uuid4().hex
            self.sent.append(key)
            reply = await self.charge(key)
            return reply is not None and reply.status_code == 201

        await eventually(served, seconds=seconds)
        return trio.current_time() - began

    async def require_each_charged_once(self) -> None:
        """Send everything again, and compare with the PSP's list."""
        self.customers.cancel()
        for key, payment_id in self.acknowledged.items():
            reply = await self.charge(key)
            assert reply is not None
            assert (reply.status_code, reply.json()["id"]) == (201, payment_id), reply.text
        await eventually(self._agrees_with_the_psp)
        connection = await Connection.open(self.instance.database_url)
        orders = await connection.query("SELECT order_id FROM payment_requests GROUP BY order_id HAVING count(*) > 1")
        violations = await broken_promises(connection)
        connection.discard()
        assert orders == []
        assert not violations, "\n".join(f"{one.check.name}: {one.columns} {one.rows}" for one in violations)

    async def _agrees_with_the_psp(self) -> bool:
        """Return whether all is settled and the PSP holds as much as we say: it would hold more if it had charged twice."""
        connection = await Connection.open(self.instance.database_url)
        counted = await connection.query(
            """
            SELECT count(*) FILTER (WHERE status = 'SUCCEEDED'), count(*) FILTER (WHERE status IN ('PENDING', 'UNKNOWN'))
              FROM payment_requests
            """
        )
        connection.discard()
        captured, unsettled = counted[0]
        headers = {"authorization": f"Bearer {self.instance.demo.psp_api_key}"}
        balances = (await self.http.get(f"{self.instance.running.psp_url}/v1/balances", headers=headers)).json()
        return captured >= len(self.acknowledged) and not unsettled and balances["EUR"] == 1_990 * captured


@asynccontextmanager
async def under_load(instance: Instance) -> AsyncIterator[Load]:
    async with httpx2.AsyncClient(timeout=15) as http:
        load = Load(instance, http)
        await load.until_served()
        async with trio.open_nursery() as customers:
            load.customers = customers.cancel_scope
            for _ in range(CUSTOMERS):
                customers.start_soon(load.run)
            await trio.sleep(0.5)
            yield load
            load.customers.cancel()


async def limit_rate(instance: Instance) -> None:
    """Give the PSP account a rate, whose schedule is a time in the database."""
    connection = await Connection.open(instance.database_url)
    await connection.execute(f"UPDATE psp_accounts SET requests_per_second_max = {RATE}")
    connection.discard()


def an_instance(directory: Path, url: str | None, settings: Mapping[str, str], *, workers: int = 2) -> Options:
    wanted = {"FLORIN_LOG_LEVEL": "error", **settings}
    return Options(data_directory=directory, database_url=url, workers=workers, port=0, psp_port=0, shop_port=0, settings=wanted)


@contextmanager
def postgres_by(clock: Clock) -> Iterator[embedded_postgres.Embedded]:
    """A PostgreSQL that goes by a clock."""
    directory = make_reachable_directory()
    server = embedded_postgres.start(directory, environment={**os.environ, **clock.environment})
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=15)


@pytest.fixture
def clock() -> Clock:
    return Clock(make_reachable_directory() / "clock")


@pytest.mark.timeout(240)
async def test_a_worker_whose_clock_stands_wrong_does_not_serve(directory: Path, clock: Clock) -> None:
    """It refuses to start, with one line that says why, and ends by itself if its clock is moved later. Nothing is pruned."""
    async with open_instance(an_instance(directory, None, {})) as instance, under_load(instance) as load:
        environment = {
            **os.environ,
            **clock.environment,
            "FLORIN_DATABASE_URL": instance.database_url,
            "FLORIN_KEY_FILE": instance.running.key_file,
        }
        for offset in OFFSETS:
            clock.set(offset)
            said = await _run_worker(environment, until_moved=None)
            assert "this machine's clock is" in said, said
            assert ("ahead" if offset[0] == "+" else "behind") in said
        for offset in OFFSETS:
            clock.set("+0")
            said = await _run_worker(environment, until_moved=lambda offset=offset: clock.set(offset))
            assert "this machine's clock is" in said, said
        await load.require_each_charged_once()


async def _run_worker(environment: Mapping[str, str], *, until_moved: object) -> str:
    """Run one more worker to its end. Returns what it has logged."""
    link, theirs = pair()
    with bind("127.0.0.1", 0) as listening, theirs:
        arguments = (uuid4().hex, "-", theirs.fileno(), 0, listening.fileno())
        child = child_process.spawn(
            child_process.python("server.process.worker_process", *map(str, arguments)),
            death_signal=signal.SIGTERM,
            pass_fds=(listening.fileno(), theirs.fileno()),
            environment=environment,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        try:
            with trio.fail_after(30):
                assert await link.hear() == ("ready" if until_moved is not None else None)
            if callable(until_moved):
                until_moved()
            with trio.fail_after(20):
                assert await child_process.wait(child) == 75
            assert child.stderr is not None
            with child.stderr as said:
                return said.read().decode()
        finally:
            link.close()
            child.kill()
            child.wait()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("whose", ["workers", "database"])
async def test_clocks_that_disagree_stop_the_service_until_they_agree(directory: Path, clock: Clock, whose: str) -> None:
    with postgres_by(clock if whose == "database" else Clock(make_reachable_directory() / "right")) as server:
        await embedded_postgres.until_ready(server)
        settings = clock.environment if whose == "workers" else {}
        async with open_instance(an_instance(directory, server.url, settings)) as instance:
            await limit_rate(instance)
            async with under_load(instance) as load:
                for offset in OFFSETS:
                    clock.set(offset)
                    await trio.sleep(4)
                    refused = await load.charge(uuid4().hex)
                    assert refused is None or refused.status_code == 503
                    clock.set("+0")
                    print(f"{whose} {offset}: served again after {await load.until_served():.1f} s")
                await load.require_each_charged_once()


@pytest.mark.timeout(240)
async def test_a_machine_whose_clock_jumps_keeps_all_keys_and_recovers(directory: Path, clock: Clock) -> None:
    """Workers and database agree, so they serve: but nothing is pruned, and what was stored for too far ahead is set right."""
    with postgres_by(clock) as server:
        await embedded_postgres.until_ready(server)
        async with open_instance(an_instance(directory, server.url, clock.environment)) as instance:
            await limit_rate(instance)
            async with under_load(instance) as load:
                for offset in OFFSETS:
                    clock.set(offset)
                    await trio.sleep(3)
                    await load.until_served()
                    clock.set("+0")
                    await trio.sleep(1.5)
                    print(f"all {offset}: served again after {await load.until_served():.1f} s")
                await load.require_each_charged_once()


async def test_what_was_stored_by_a_clock_that_stood_ahead_is_set_right(instance: Instance) -> None:
    """A due time, a rate, a breaker, the list of events: each a day or more ahead, as after a clock that has gone back."""
    async with httpx2.AsyncClient(timeout=15) as http:
        load = Load(instance, http)
        key = uuid4().hex
        await http.post(f"{instance.running.psp_url}/control", json={"create": "reset_after", "fetch": "drop"})
        reply = await load.charge(key)
        assert reply is not None
        assert reply.status_code == 504, reply.text
        await http.post(f"{instance.running.psp_url}/control", json={"create": "answer", "fetch": "answer"})
        connection = await Connection.open(instance.database_url)
        for statement in (
            "UPDATE payment_requests SET due_at = now() + interval '2 days 23 hours'",
            "UPDATE psp_states SET rate_used_until = now() + interval '2 days', events_read_until = now() + interval '2 days'",
            "UPDATE database_clock SET seen_at = now() + interval '2 days'",
        ):
            await connection.execute(statement)

        async def settled() -> bool:
            return await connection.query("SELECT status FROM payment_requests") == [("SUCCEEDED",)]

        async def set_right() -> bool:
            text = "SELECT max(rate_used_until) < now() + interval '1 minute', max(events_read_until) < now() FROM psp_states"
            return await connection.query(text) == [(True, True)]

        await eventually(settled)
        await eventually(set_right)
        assert not await broken_promises(connection)
        connection.discard()


@pytest.fixture
async def instance(directory: Path) -> AsyncIterator[Instance]:
    async with open_instance(an_instance(directory, None, {"FLORIN_SWEEP_SECONDS": "0.2"}, workers=1)) as running:
        yield running
