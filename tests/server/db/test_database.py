"""The driver, the pool, the committers, migrations and the schema, on a real PostgreSQL."""

from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Any

import psycopg
import pytest
import trio

from core.errors import DatabaseRefused, DatabaseUnavailable, Overloaded
from core.idempotency import StoredKey
from core.ids import MerchantId, PaymentId
from core.payment import Payment
from server.db import group_commit as committer_module
from server.db.connection import Connection
from server.db.group_commit import Committer
from server.db.migrate import MigrationError, applied, migrate, migrations
from server.db.payments.change_row import ChangeRow
from server.db.payments.changes import Applied, ChangeGroup, Lost
from server.db.payments.creations import Creation, CreationGroup, OrderIsLive
from server.db.pool import open_pool
from server.db.roles import Role
from server.uuid7 import uuid7
from tests.support.changes import a_change, a_creation, a_payment
from tests.support.florin import until


async def test_a_cancelled_query_leaves_a_usable_connection(connection: Connection) -> None:
    with trio.move_on_after(0.05) as scope:
        await connection.query("SELECT pg_sleep(60)")
    assert scope.cancelled_caught
    assert connection.is_usable()
    assert await connection.query("SELECT 1") == [(1,)]


async def test_a_query_larger_than_the_socket_buffer(connection: Connection) -> None:
    assert await connection.query("SELECT length($1::text)", "x" * 20_000_000) == [(20_000_000,)]


async def test_two_tasks_cannot_share_a_connection(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.query, "SELECT pg_sleep(0.2)")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(psycopg.InterfaceError, match="two tasks"):
            await connection.query("SELECT 1")


async def test_a_cancelled_transaction_is_rolled_back(connection: Connection, database_url: str) -> None:
    with trio.move_on_after(0.1):
        async with connection.atomic():
            await connection.execute("CREATE TABLE gone (x integer)")
            await trio.sleep_forever()
    other = await Connection.open(database_url)
    assert await other.query("SELECT to_regclass('gone')") == [(None,)]
    other.discard()


async def test_the_pool_replaces_dead_connections_and_is_bounded(database_url: str) -> None:
    async with open_pool(database_url, size=2) as pool:
        async with pool.connection() as first:
            pid = (await first.query("SELECT pg_backend_pid()"))[0][0]
        killer = await Connection.open(database_url)
        await killer.query("SELECT pg_terminate_backend($1)", pid)
        killer.discard()
        await trio.sleep(0.05)
        async with pool.connection() as second:
            assert (await second.query("SELECT pg_backend_pid()"))[0][0] != pid
        with pytest.raises(DatabaseUnavailable):
            async with pool.connection() as third:
                await third.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    async with open_pool(database_url, size=1, waiters_max=0) as pool, pool.connection():
        with pytest.raises(Overloaded):
            async with pool.connection():
                pass


async def test_an_address_where_nothing_answers() -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot connect"):
        await Connection.open("postgresql://nobody@127.0.0.1:9/none")
    with pytest.raises(DatabaseUnavailable):
        await Connection.open("postgresql://nobody@host.invalid/none")


async def test_creations_and_changes_in_batches(database_url: str, connection: Connection) -> None:
    creations = Committer(CreationGroup(worker_id=uuid7()), database_url)
    changes = Committer(ChangeGroup(delivery_lease_seconds=30), database_url)
    merchant_ids = [MerchantId(uuid7()) for _ in range(3)]
    payments = [a_payment(merchant_ids[number % 3]) for number in range(300)]
    results: list[Applied | Lost] = []

    async def live(payment: Payment) -> None:
        assert await creations.submit(a_creation(payment)) is None
        results.append(await changes.submit(a_change(payment)))

    async with trio.open_nursery() as nursery:
        await nursery.start(creations.run)
        await nursery.start(changes.run)
        async with trio.open_nursery() as callers:
            for payment in payments:
                callers.start_soon(live, payment)
        nursery.cancel_scope.cancel()

    assert all(isinstance(result, Applied) for result in results)
    assert creations.groups < 20
    assert await connection.query("SELECT count(*), sum(balance_minor) FROM wallets") == [(3, 30_000)]
    assert await connection.query("SELECT count(*), max(seq) FROM events") == [(300, 100)]


async def test_the_loser_of_a_key_reads_the_winner(database_url: str) -> None:
    committers = [Committer(CreationGroup(worker_id=uuid7()), database_url) for _ in range(2)]
    merchant_id = MerchantId(uuid7())
    creations = [a_creation(a_payment(merchant_id), "same key") for _ in range(20)]
    results: dict[PaymentId, StoredKey | OrderIsLive | None] = {}

    async def submit(number: int, creation: Creation) -> None:
        results[creation.payment.id] = await committers[number % 2].submit(creation)

    async with trio.open_nursery() as nursery:
        for one in committers:
            await nursery.start(one.run)
        async with trio.open_nursery() as callers:
            for number, creation in enumerate(creations):
                callers.start_soon(submit, number, creation)
        nursery.cancel_scope.cancel()

    winners = [payment_id for payment_id, stored in results.items() if stored is None]
    assert len(winners) == 1
    assert {stored.resource_id for stored in results.values() if isinstance(stored, StoredKey)} == set(winners)


async def test_two_writers_with_crossing_keys_lose_nothing(database_url: str, connection: Connection) -> None:
    merchant_ids = [MerchantId(uuid7()) for _ in range(8)]
    payments = [a_payment(merchant_ids[number % 8]) for number in range(64)]
    await CreationGroup(worker_id=uuid7()).write(connection, [a_creation(payment) for payment in payments])
    writers = [Committer(ChangeGroup(delivery_lease_seconds=30), database_url) for _ in range(2)]
    results: list[Applied | Lost] = []

    async def submit(writer: Committer[ChangeRow, Applied | Lost], payment: Payment) -> None:
        results.append(await writer.submit(a_change(payment)))

    async with trio.open_nursery() as nursery:
        for writer in writers:
            await nursery.start(writer.run)
        async with trio.open_nursery() as callers:
            for payment in payments:
                callers.start_soon(submit, writers[0], payment)
            for payment in reversed(payments):
                callers.start_soon(submit, writers[1], payment)
        nursery.cancel_scope.cancel()

    assert sum(isinstance(result, Applied) for result in results) == 64
    assert await connection.query("SELECT sum(balance_minor) FROM wallets") == [(6_400,)]
    assert await connection.query("SELECT count(*), sum(last_seq) FROM merchant_sequences") == [(8, 64)]


async def test_one_bad_row_fails_alone(database_url: str) -> None:
    creations = Committer(CreationGroup(worker_id=uuid7()), database_url)
    merchant_id = MerchantId(uuid7())
    good = [a_creation(a_payment(merchant_id)) for _ in range(9)]
    bad = a_creation(a_payment(merchant_id), "x" * 300)
    outcomes: list[object] = []

    async def submit(creation: Creation) -> None:
        try:
            outcomes.append(await creations.submit(creation))
        except DatabaseRefused as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        await nursery.start(creations.run)
        async with trio.open_nursery() as callers:
            for creation in [*good[:5], bad, *good[5:]]:
                callers.start_soon(submit, creation)
        nursery.cancel_scope.cancel()

    assert outcomes.count(None) == 9
    assert sum(isinstance(one, DatabaseRefused) for one in outcomes) == 1


async def test_a_lost_connection_is_retried_without_writing_twice(database_url: str, connection: Connection) -> None:
    class Forgetful(ChangeGroup):
        """Loses the answer to its first group, after it was committed."""

        failures = 1

        async def write(self, connection: Connection, items: Sequence[ChangeRow]) -> list[Applied | Lost]:
            results = await super().write(connection, items)
            if self.failures:
                self.failures -= 1
                raise psycopg.OperationalError("the answer was lost")
            return results

    payment = a_payment(MerchantId(uuid7()))
    await CreationGroup(worker_id=uuid7()).write(connection, [a_creation(payment)])
    writer = Committer(Forgetful(delivery_lease_seconds=30), database_url)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        assert isinstance(await writer.submit(a_change(payment)), Applied)
        nursery.cancel_scope.cancel()
    assert await connection.query("SELECT count(*) FROM payment_logs") == [(2,)]


async def test_a_cancelled_caller_leaves_and_its_taken_item_is_written(database_url: str, connection: Connection) -> None:
    creations = Committer(CreationGroup(worker_id=uuid7()), database_url)
    abandoned, taken = (a_creation(a_payment(MerchantId(uuid7()))) for _ in range(2))
    with trio.move_on_after(0.01):
        await creations.submit(abandoned)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(creations.submit, taken)
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(creations.run)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    written = await connection.query("SELECT id FROM payment_requests")
    assert (abandoned.payment.id,) not in written


async def test_the_queue_is_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "QUEUE_MAX", 1)
    creations = Committer(CreationGroup(worker_id=uuid7()), database_url)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(creations.submit, a_creation(a_payment(MerchantId(uuid7()))))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await creations.submit(a_creation(a_payment(MerchantId(uuid7()))))
        nursery.cancel_scope.cancel()


async def test_items_with_one_key_never_share_a_batch(database_url: str) -> None:
    seen: list[list[int]] = []

    class Recording:
        def conflict_key(self, item: int) -> Hashable:
            return item % 10

        async def write(self, connection: Connection, items: Sequence[int]) -> list[int]:
            await connection.query("SELECT 1")
            seen.append(list(items))
            return [item * 2 for item in items]

        async def recognize(self, connection: Connection, items: Sequence[int]) -> list[int | None]:
            return [None] * len(items)

    committer = Committer[int, int](Recording(), database_url)
    doubled: dict[int, int] = {}

    async def submit(number: int) -> None:
        doubled[number] = await committer.submit(number)

    async with trio.open_nursery() as nursery:
        await nursery.start(committer.run)
        async with trio.open_nursery() as callers:
            for number in range(50):
                callers.start_soon(submit, number)
        nursery.cancel_scope.cancel()
    assert doubled == {number: number * 2 for number in range(50)}
    assert all(len({item % 10 for item in batch}) == len(batch) for batch in seen)


async def test_what_nobody_waits_for_is_gathered_and_what_somebody_waits_for_is_not(
    database_url: str, connection: Connection
) -> None:
    merchant_id = MerchantId(uuid7())
    creations = Committer(CreationGroup(worker_id=uuid7()), database_url, gather_seconds=60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(creations.run)
        for _ in range(5):
            creations.deposit(a_creation(a_payment(merchant_id)))
        await trio.testing.wait_all_tasks_blocked()
        assert (creations.groups, creations.is_idle) == (0, False)
        assert await creations.submit(a_creation(a_payment(merchant_id))) is None
        assert (creations.groups, creations.items) == (1, 6)
        creations.deposit(a_creation(a_payment(merchant_id)))
        nursery.cancel_scope.cancel()  # what is left is written at the end
    assert await connection.query("SELECT count(*) FROM payment_requests") == [(7,)]


async def test_a_full_group_of_deposits_is_written_at_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "GROUP_MAX", 4)
    creations = Committer(CreationGroup(worker_id=uuid7()), database_url, gather_seconds=60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(creations.run)
        for _ in range(4):
            creations.deposit(a_creation(a_payment(MerchantId(uuid7()))))
        await until(lambda: creations.is_idle)
        nursery.cancel_scope.cancel()
    assert (creations.groups, creations.items) == (1, 4)


async def test_plans_are_made_again_as_the_tables_grow_and_not_by_the_clock(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded: list[int] = []
    execute = Connection.execute

    async def counted(self: Connection, query: Any, *args: Any, **kwargs: Any) -> Any:
        if query == "DISCARD PLANS":
            discarded.append(creations.items)
        return await execute(self, query, *args, **kwargs)

    monkeypatch.setattr(Connection, "execute", counted)
    creations = Committer(CreationGroup(worker_id=uuid7()), database_url)
    async with trio.open_nursery() as nursery:
        await nursery.start(creations.run)
        for _ in range(40):
            await creations.submit(a_creation(a_payment(MerchantId(uuid7()))))
        nursery.cancel_scope.cancel()
    assert discarded == [1, 3, 7, 15, 31]


async def test_migrations_apply_once_and_never_change(connection: Connection) -> None:
    assert await migrate(connection) == []
    assert set(await applied(connection)) == {migration.number for migration in migrations()}
    await connection.execute("UPDATE schema_migrations SET sha256 = 'other'")
    with pytest.raises(MigrationError, match="was changed"):
        await migrate(connection)
    await connection.execute("INSERT INTO schema_migrations (number, name, sha256) VALUES (9999, 'future', '')")
    with pytest.raises(MigrationError, match="newer"):
        await migrate(connection)


async def test_append_only_tables_refuse_changes(connection: Connection) -> None:
    for table in ("ledger_entries", "payment_logs", "events"):
        for statement in (f"UPDATE {table} SET merchant_id = merchant_id", f"DELETE FROM {table}", f"TRUNCATE {table}"):
            with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
                await connection.execute(statement)


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[Connection]:
    """A read-only connection to a PostgreSQL that Florin supports."""
    connection = await Connection.open(database_url, role=Role.READ)
    assert (await connection.query("SHOW server_version"))[0][0].startswith(("15", "16", "17", "18"))
    yield connection
    connection.discard()


@pytest.mark.any_postgres
async def test_every_key_leads_with_the_merchant(reader: Connection) -> None:
    rows = await reader.query(
        """
        SELECT c.conrelid::regclass::text, c.conname, a.attname
          FROM pg_constraint c
          JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
         WHERE c.contype IN ('p', 'u', 'f') AND c.connamespace = 'public'::regnamespace
        """
    )
    reference_tables = {
        "operators",
        "operator_recovery_codes",
        "operator_sessions",
        "psp_accounts",
        "psp_states",
        "workers",
        "database_clock",
        "settings_changes",
        "sequence_epochs",
        "schema_migrations",
    }
    wrong = [row for row in rows if row[2] != "merchant_id" and row[0] not in reference_tables]
    assert wrong == []
    assert {row[0] for row in rows} >= {"payment_requests", "ledger_entries", "events", "deliveries", "wallets"}


@pytest.mark.any_postgres
async def test_unique_indexes_lead_with_the_merchant_and_defaults_are_not_volatile(reader: Connection) -> None:
    stray = await reader.query(
        """
        SELECT indexrelid::regclass::text FROM pg_index i
          JOIN pg_class t ON t.oid = i.indrelid
          JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
         WHERE i.indisunique AND t.relnamespace = 'public'::regnamespace AND a.attname <> 'merchant_id'
           AND t.relname NOT IN (
               'operators', 'operator_recovery_codes', 'operator_sessions',
               'psp_accounts', 'psp_states', 'workers', 'database_clock', 'settings_changes', 'sequence_epochs',
               'schema_migrations')
        """
    )
    assert stray == []
    volatile = await reader.query(
        """
        SELECT d.adrelid::regclass::text FROM pg_attrdef d JOIN pg_class t ON t.oid = d.adrelid
         WHERE t.relnamespace = 'public'::regnamespace AND pg_get_expr(d.adbin, d.adrelid) ~ '(random|nextval|clock_timestamp)'
        """
    )
    assert volatile == []
