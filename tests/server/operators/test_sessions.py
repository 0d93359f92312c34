"""Logging in: what counts, what does not, and how long."""

from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import trio

from core.errors import FlorinError, Forbidden, RateLimited, Unauthenticated, Unprocessable
from core.operators import OperatorRole
from server.clock import utc_now
from server.db.connection import Connection
from server.db.operators.operators import FREE_FAILURES, has_active_admin, list_operators, set_disabled
from server.db.roles import Role
from server.flows.operators.sessions import SESSION_SECONDS, confirm, log_in, log_out, operator_of
from server.passwords import is_password, require_password
from server.sealing import Sealer, create_key_file
from tests.support.operators import PASSWORD, Person, add_person


@pytest.fixture
def sealer(tmp_path: Path) -> Sealer:
    create_key_file(tmp_path / "sealing.key")
    return Sealer.from_file(tmp_path / "sealing.key")


async def token_of(connection: Connection, sealer: Sealer, person: Person, *, code: str | None = None) -> str:
    name = person.operator.name
    session = await log_in(connection, sealer, name=name, password=PASSWORD, code=code or person.code(), now=utc_now())
    return session.token


async def test_a_session_acts_by_its_role_until_it_ends(connection: Connection, sealer: Sealer) -> None:
    ada = await add_person(connection, sealer, "ada", OperatorRole.SUPPORT)
    token = await token_of(connection, sealer, ada)
    operator, needs_factor = await operator_of(connection, token, "finding.take", now=utc_now())
    assert (operator.name, operator.role, needs_factor) == ("ada", OperatorRole.SUPPORT, False)
    with pytest.raises(Forbidden, match="ada is support, and this takes finance or admin"):
        await operator_of(connection, token, "payout.request", now=utc_now())
    with pytest.raises(Unauthenticated, match="log in"):
        await operator_of(connection, token, "finding.take", now=utc_now() + timedelta(seconds=SESSION_SECONDS + 1))
    (listed,) = await list_operators(connection)
    assert listed.last_seen_at is not None
    await log_out(connection, token, now=utc_now())
    with pytest.raises(Unauthenticated, match="log in"):
        await operator_of(connection, token, "finding.take", now=utc_now())


async def test_a_disabled_operator_is_out_at_once(connection: Connection, sealer: Sealer) -> None:
    ada = await add_person(connection, sealer, "ada", OperatorRole.ADMIN)
    token = await token_of(connection, sealer, ada)
    assert await has_active_admin(connection)
    await set_disabled(connection, "ada", at=utc_now())
    assert not await has_active_admin(connection)
    with pytest.raises(Unauthenticated):
        await operator_of(connection, token, "merchant.add", now=utc_now())
    with pytest.raises(Unauthenticated, match="wrong name, password or code"):
        await token_of(connection, sealer, ada, code=ada.code(1))
    await set_disabled(connection, "ada", at=None)
    with pytest.raises(Unauthenticated):
        await operator_of(connection, token, "merchant.add", now=utc_now())
    await token_of(connection, sealer, ada, code=ada.code(1))


async def test_every_wrong_login_says_the_same(connection: Connection, sealer: Sealer) -> None:
    ada = await add_person(connection, sealer, "ada")
    wrong = [
        ("ada", "wrong password", ada.code()),
        ("ada", PASSWORD, "000000"),
        ("nobody", PASSWORD, ada.code()),
        ("ada", PASSWORD, ""),
    ]
    said = set()
    for name, password, code in wrong:
        with pytest.raises(Unauthenticated) as refused:
            await log_in(connection, sealer, name=name, password=password, code=code, now=utc_now())
        said.add(str(refused.value))
    assert said == {"wrong name, password or code"}


async def test_a_code_counts_once_and_a_recovery_code_too(connection: Connection, sealer: Sealer) -> None:
    ada = await add_person(connection, sealer, "ada")
    code = ada.code()
    await token_of(connection, sealer, ada, code=code)
    with pytest.raises(Unauthenticated):
        await token_of(connection, sealer, ada, code=code)
    await token_of(connection, sealer, ada, code=ada.codes[0].upper())
    with pytest.raises(Unauthenticated):
        await token_of(connection, sealer, ada, code=ada.codes[0])


async def test_failures_are_answered_with_growing_pauses_even_many_at_once(
    connection: Connection, sealer: Sealer, database_url: str
) -> None:
    ada = await add_person(connection, sealer, "ada")
    outcomes: list[type[FlorinError]] = []

    async def attempt() -> None:
        session = await Connection.open(database_url)
        try:
            await log_in(session, sealer, name="ada", password="wrong password", code="1", now=utc_now())
        except FlorinError as error:
            outcomes.append(type(error))
        finally:
            session.discard()

    async with trio.open_nursery() as nursery:
        for _ in range(FREE_FAILURES + 4):
            nursery.start_soon(attempt)
    assert outcomes.count(RateLimited) >= 3, outcomes
    with pytest.raises(RateLimited, match="try again in"):
        await token_of(connection, sealer, ada)
    await connection.execute("UPDATE operators SET locked_until = now()")
    await token_of(connection, sealer, ada)
    assert await connection.query("SELECT failures, locked_until FROM operators") == [(0, None)]


async def test_money_takes_a_second_factor_which_counts_for_some_minutes(connection: Connection, sealer: Sealer) -> None:
    ada = await add_person(connection, sealer, "ada")
    used = ada.code()
    token = await token_of(connection, sealer, ada, code=used)
    assert (await operator_of(connection, token, "payout.request", now=utc_now()))[1]
    with pytest.raises(Unauthenticated, match=r"^wrong code$"):
        await confirm(connection, sealer, token, code="123456", now=utc_now())
    with pytest.raises(Unauthenticated, match=r"^wrong code$"):
        await confirm(connection, sealer, token, code=used, now=utc_now())
    await confirm(connection, sealer, token, code=ada.code(1), now=utc_now())
    assert not (await operator_of(connection, token, "payout.request", now=utc_now()))[1]
    assert (await operator_of(connection, token, "payout.request", now=utc_now() + timedelta(minutes=6)))[1]


async def test_passwords_are_hashed_slowly_and_have_bounds() -> None:
    for text in ("short", "x" * 1_001):
        with pytest.raises(Unprocessable, match="12 to 1000 characters"):
            require_password(text)
    assert not await is_password("anything at all", None)
    assert not await is_password("anything at all", "not a hash")


async def test_the_database_refuses_what_the_code_should_not_ask_for(connection: Connection, database_url: str) -> None:
    service = """
    INSERT INTO operators (id, name, role, is_service, key_sha256, created_at)
    VALUES (gen_random_uuid(), 'ci', 'finance', true, sha256('x'), now())
    """
    with pytest.raises(psycopg.errors.CheckViolation, match="a_service_moves_no_money"):
        await connection.execute(service)
    reader = await Connection.open(database_url, role=Role.READ)
    worker = await Connection.open(database_url, role=Role.APP)
    try:
        for session, secret in ((reader, "password_hash"), (reader, "sealed_totp_secret"), (worker, "key_sha256")):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await session.query(f"SELECT {secret} FROM operators")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await worker.execute("UPDATE operator_requests SET approved_by = requested_by")
    finally:
        reader.discard()
        worker.discard()
