"""Sessions are the same whatever the server, the database, the user and the environment have for defaults; addresses are safe."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from core.errors import DatabaseUnavailable
from server.db import conninfo
from server.db.connection import SESSION_SETTINGS, Connection, ReadOnly
from server.db.conninfo import BadAddress, parse, with_login, without_password
from server.db.migrate import MigrationError, migrate, require_current
from server.db.roles import Role
from server.jobs.event_hints import RECONNECT_SECONDS
from server.process.embedded_postgres import Embedded
from tests.conftest import database_of
from tests.support.florin import Florin, eventually, open_florin, order
from tests.support.payments import act, charge
from tests.support.webhooks import call

STRANGE = {
    "datestyle": "German, DMY",
    "timezone": "Asia/Kolkata",
    "client_encoding": "latin1",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "extra_float_digits": "-15",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "synchronous_commit": "off",
    "search_path": "nope",
}


@asynccontextmanager
async def altered(database_url: str, settings: dict[str, str]) -> AsyncIterator[None]:
    """A database whose sessions begin with these settings."""
    name = database_url.rpartition("/")[2]
    async with _owner(database_url) as owner:
        for setting, value in settings.items():
            await owner.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
        yield


@asynccontextmanager
async def _owner(database_url: str) -> AsyncIterator[Connection]:
    connection = await Connection.open(database_url)
    try:
        yield connection
    finally:
        connection.discard()


async def test_a_database_with_strange_defaults_gives_the_same_documents(database_url: str, directory: Path) -> None:
    async with altered(database_url, STRANGE), open_florin(database_url, directory) as florin:
        payment = await charge(florin, description="Ümit 😀 — 日本", metadata={"a": "€"})
        assert (payment["description"], payment["created_at"][-1]) == ("Ümit 😀 — 日本", "Z")
        refund = (await act(florin, payment, "refunds", amount=5)).json()
        assert refund["created_at"].endswith("Z")
        events = (await call(florin, "GET", "events?after=0")).json()["data"]
        assert events
        assert all(one["timestamp"].endswith("Z") and one["data"]["created_at"].endswith("Z") for one in events)
        page = (await call(florin, "GET", "payments")).json()["data"]
        assert page[0]["description"] == payment["description"]
        await florin.require_promises()


async def test_every_session_has_what_florin_depends_on(database_url: str) -> None:
    async with altered(database_url, STRANGE):
        for role in (None, Role.APP, Role.READ):
            connection = await Connection.open(database_url, role=role)
            for name, value in SESSION_SETTINGS.items():
                assert (await connection.query("SELECT current_setting($1)", name))[0][0] in (value, f"{value}ms"), name
            assert (await connection.query("SHOW synchronous_commit"))[0][0] == "on"
            connection.discard()


async def test_a_stronger_commit_is_left_alone(database_url: str) -> None:
    async with altered(database_url, {"synchronous_commit": "remote_apply"}):
        connection = await Connection.open(database_url)
        assert (await connection.query("SHOW synchronous_commit"))[0][0] == "remote_apply"
        connection.discard()


async def test_a_session_that_loses_nothing_need_not_wait_for_the_disk(database_url: str) -> None:
    session = await Connection.open(database_url, synchronous_commit="off")
    try:
        assert await session.query("SHOW synchronous_commit") == [("off",)]
    finally:
        session.discard()


async def test_a_worker_keeps_its_sessions(florin: Florin) -> None:
    async def sessions() -> dict[int, str]:
        rows = await florin.connection.query(
            "SELECT pid, application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return dict(rows)

    async def all_are_open() -> dict[int, str] | None:
        found = await sessions()
        return found if list(found.values()).count("florin hints") == 2 else None

    opened = await eventually(all_are_open)
    for _ in range(3):
        await trio.sleep(RECONNECT_SECONDS)
        await charge(florin)
    assert opened.items() <= (await sessions()).items()


async def test_a_database_that_turns_read_only_is_unavailable_and_recovers(database_url: str, directory: Path) -> None:
    """As after `ALTER DATABASE`, sessions that exist stay writable, and those that were opened meanwhile stay read-only."""
    name = database_url.rpartition("/")[2]
    async with open_florin(database_url, directory, pool_size=2) as florin:
        await florin.create()
        await florin.connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await _end_sessions(florin)

        async def refused() -> bool:
            reply = await florin.post(order())
            assert reply.status_code in (201, 503), reply.text
            if reply.status_code == 503:
                assert (reply.json()["code"], reply.headers["retry-after"]) == ("database_unavailable", "1")
            return reply.status_code == 503

        assert await eventually(refused)
        assert await eventually(lambda: _readiness(florin, 503))
        await florin.connection.execute("SET default_transaction_read_only = off")
        await florin.connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

        async def taken() -> bool:
            return (await florin.post(order())).status_code == 201

        assert await eventually(taken)
        assert await eventually(lambda: _readiness(florin, 200))


async def test_sessions_that_were_opened_while_it_was_read_only_are_thrown_away(database_url: str, directory: Path) -> None:
    async with open_florin(database_url, directory, pool_size=2) as florin:
        payment = await charge(florin)
        for _ in range(3):
            async with florin.payments.pool.connection() as connection:
                await connection.execute("SET default_transaction_read_only = on")
        replies = [await act(florin, payment, "refunds", amount=1) for _ in range(6)]
        codes = {one.status_code for one in replies}
        assert codes <= {201, 503}
        assert replies[-1].status_code == 201


async def _readiness(florin: Florin, status: int) -> bool:
    return (await florin.http.get(f"{florin.api_url}/readyz")).status_code == status


async def _end_sessions(florin: Florin) -> None:
    await florin.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_a_standby_is_not_written_to(database_url: str) -> None:
    async with altered(database_url, {"default_transaction_read_only": "on"}):
        with pytest.raises(ReadOnly, match="read-only"):
            await Connection.open(database_url, role=Role.APP, writes=True)
        (await Connection.open(database_url, role=Role.READ)).discard()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_cannot_hold_every_text_is_refused(postgres: Embedded, encoding: str) -> None:
    name = f"test_{encoding.lower()}_{os.getpid()}"
    with psycopg.connect(database_of(postgres, "postgres"), autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
        async with _owner(database_of(postgres, name)) as connection:
            for ask in (migrate, require_current):
                with pytest.raises(MigrationError, match=f"encoding is {encoding}.*ENCODING 'UTF8'"):
                    await ask(connection)
        owner.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_several_hosts_are_tried_until_one_can_be_written(database_url: str) -> None:
    head, _, tail = database_url.partition("@")
    where, _, name = tail.partition("/")
    dead = f"{head}@127.0.0.1:1,nosuchhost.invalid:5432,{where}/{name}?target_session_attrs=read-write"
    (await Connection.open(dead, role=Role.APP, writes=True)).discard()
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1"):
        await Connection.open(f"{head}@127.0.0.1:1,127.0.0.1:2/{name}")
    with pytest.raises(DatabaseUnavailable, match=r"cannot resolve nosuchhost\.invalid"):
        await Connection.open(f"{head}@nosuchhost.invalid/{name}")


MALFORMED = [
    ("postgresql+psycopg://u:SECRET@h/db", "its scheme is 'postgresql\\+psycopg'"),
    ("mysql://u:SECRET@h/db", "its scheme is 'mysql'"),
    ("postgresql://u:SEC%ZZRET@h/db", "%25"),
    ("postgresql://u:SEC RET@h/db", "%40"),
    ("postgresql://u:SEC/RET@h/db", "%2F"),
    ("postgresql://u:SEC@RET@h/db", "%40"),
    ("postgresql://u:SECRET@h:x/db", "host or port"),
    ("postgresql://u:SECRET@h:70000/db", "host or port"),
    ("host=h1,h2 port=1,2,3 password=SECRET", "2 hosts and 3 ports"),
    ("postgresql://u:SECRET@[::1/db", "the \\] after its host"),
    ("postgresql://u:SECRET@h/db?sslmod=require", "no parameter sslmod"),
    ("postgresql://u:SECRET@h/db?sslmode=require&sslmode=disable", "sslmode more than once"),
    ("host=h password=SECRET nonsense", "neither a URL nor NAME=VALUE"),
    ("SECRET", "neither a URL nor NAME=VALUE"),
    ("", "it is empty"),
]


@pytest.mark.parametrize(("address", "said"), MALFORMED)
def test_a_malformed_address_is_explained_without_its_password(address: str, said: str) -> None:
    with pytest.raises(BadAddress, match=said) as refused:
        parse(address)
    text = str(refused.value)
    assert "\n" not in text
    assert not any(part in text for part in ("SECRET", "SEC", "RET"))


def test_addresses_that_may_be_shown() -> None:
    for address, shown in (
        ("postgresql://u:p@h:1/db", "postgresql://u@h:1/db"),
        ("postgresql://u:p@h1:1,h2:2/db", "postgresql://u@h1:1,h2:2/db"),
        ("host=/tmp/x user=u password=p dbname=db", "postgresql://u@/db?host=/tmp/x&port=5432"),
    ):
        assert without_password(address) == shown
    other = with_login("postgresql://h1:1,[::1]:2/db?sslmode=require", "a/b", "p@:/?#")
    assert parse(other) == {
        "user": "a/b",
        "password": "p@:/?#",
        "host": "h1,::1",
        "port": "1,2",
        "dbname": "db",
        "sslmode": "require",
    }


def test_no_variable_of_libpq_reaches_a_connection(database_url: str) -> None:
    code = (
        "import sys, trio\n"
        "from server.db.connection import Connection\n"
        "async def work():\n"
        "    connection = await Connection.open(sys.argv[1], role='florin_app')\n"
        "    print((await connection.query(\"SELECT current_setting('DateStyle') || ' ' || current_database()\"))[0][0])\n"
        "trio.run(work)\n"
    )
    variables: dict[str, Any] = {
        "PGSSLMODE": "require",
        "PGDATESTYLE": "German",
        "PGOPTIONS": "-c search_path=nope -c role=nobody",
        "PGHOST": "nosuchhost.invalid",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGPASSWORD": "x",
        "PGDATABASE": "x",
        "PGSERVICE": "x",
        "PGTARGETSESSIONATTRS": "standby",
        "PGCLIENTENCODING": "latin1",
        "PGTZ": "Asia/Kolkata",
        "PGREQUIREAUTH": "none",
    }
    command = [sys.executable, "-P", "-c", code, database_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables}, timeout=30)
    assert done.stdout.split() == ["ISO,", "YMD", database_url.rpartition("/")[2]], done.stderr
    assert conninfo.parse(database_url)
