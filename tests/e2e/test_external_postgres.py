"""Debian's PostgreSQL instead of the embedded one, under a login user that is no superuser: everything must be alike."""

import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import trio

from server import children, embedded
from server.db.connection import Connection, open_session
from server.db.migrate import migrate, status
from server.db.roles import Role
from tests.conftest import debian_postgres, make_reachable_directory
from tests.florin import Florin, open_florin
from tests.server import test_checkout, test_database, test_ledger, test_lifecycle

ALIKE: list[Callable[[Florin], Awaitable[None]]] = [
    test_checkout.test_a_paid_payment_reaches_wallet_and_merchant,
    test_checkout.test_a_card_refused_for_good_declines_only_after_a_second_look,
    test_lifecycle.test_an_authorization_is_captured_in_part_and_the_rest_released,
    test_lifecycle.test_refunds_in_full_and_in_parts,
    test_lifecycle.test_one_live_payment_per_order,
    test_lifecycle.test_disputes_take_the_money_and_give_it_back,
    test_ledger.test_the_chain_in_sql_is_the_chain_in_python,
    test_ledger.test_wallets_are_rebuilt_from_the_ledger_while_payments_are_taken,
]


@pytest.fixture(scope="module")
def debian() -> Iterator[embedded.Embedded]:
    """Debian's server, with a login user who may make roles and nothing else."""
    directory = make_reachable_directory()
    server = embedded.start(directory, binaries=debian_postgres())
    try:
        trio.run(embedded.until_ready, server)
        with psycopg.connect(server.tcp_url, autocommit=True) as connection:
            connection.execute("CREATE ROLE shop LOGIN CREATEROLE PASSWORD 'shop'")
        yield server
    finally:
        trio.run(lambda: children.stop(server.process, first=signal.SIGINT, seconds=10))
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def url(debian: embedded.Embedded) -> AsyncIterator[str]:
    """A database of that user, migrated by it."""
    name = f"test_{uuid4().hex}"
    host = debian.tcp_url.rpartition("@")[2].rpartition("/")[0]
    made = f"postgresql://shop:shop@{host}/{name}"
    with psycopg.connect(debian.tcp_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER shop")
        async with open_session(made) as session:
            assert await migrate(session)
            assert all(applied_at for _, applied_at in await status(session))
        yield made
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("alike", ALIKE, ids=lambda test: test.__name__)
async def test_it_behaves_alike(url: str, directory: Path, alike: Callable[[Florin], Awaitable[None]]) -> None:
    async with open_florin(url, directory) as florin:
        await alike(florin)
        await florin.require_promises()


async def test_its_schema_keeps_the_rules(url: str) -> None:
    connection = await Connection.open(url, role=Role.READ)
    assert (await connection.query("SHOW server_version"))[0][0].startswith(("15", "16", "17", "18"))
    await test_database.test_every_key_leads_with_the_merchant(connection)
    await test_database.test_unique_indexes_lead_with_the_merchant_and_defaults_are_not_volatile(connection)
    connection.discard()
