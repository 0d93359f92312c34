"""Statements, past balances, the hash chain, receipts, payouts, rebuilt wallets, and database privileges."""

import csv
import io
from datetime import timedelta

import msgspec
import psycopg
import pytest
import trio

from core.errors import Conflict, InvalidSignature
from core.hash_chain import GENESIS, canonical, link
from core.ids import MerchantId
from core.payout import PayoutStatus
from server.clock import utc_now
from server.db.connection import Connection
from server.db.ledger.account_statement import Period
from server.db.ledger.hash_chain import CANONICAL, entry_of, extend_chains
from server.db.ledger.payouts import list_payouts
from server.db.ledger.wallets import rebuild_wallets
from server.db.merchants.audit import Act
from server.db.pool import open_pool
from server.db.roles import Role
from server.flows.ledger import payouts
from server.flows.ledger import receipt as receipts
from server.flows.ledger.account_statement import Format, statement
from server.uuid7 import uuid7
from tests.support.florin import Florin
from tests.support.payments import act, charge, get, until_chained


def an_act(florin: Florin, actor: str = "Ada") -> Act:
    merchant_id = MerchantId(florin.demo.merchant_id)
    return Act(id=uuid7(), merchant_id=merchant_id, actor=actor, action="test", detail="", at=utc_now())


async def test_a_statement_shows_every_movement_with_the_balance_after_it(florin: Florin) -> None:
    payment = await charge(florin)
    await act(florin, payment, "refunds", amount=500)
    middle = utc_now()
    await charge(florin, amount=10)
    await florin.spend(400)

    lines = [msgspec.json.decode(line) for line in (await get(florin, "statement")).text.splitlines()]
    assert [(line["reason"], line["amount"], line["balance"]) for line in lines] == [
        ("charge", 1_990, 1_990),
        ("refund", -500, 1_490),
        ("charge", 10, 1_500),
        ("payout", -400, 1_100),
    ]
    assert lines[0]["payment_id"] == payment["id"]
    response = await get(florin, "statement", format="csv", **{"from": middle.isoformat()})
    assert response.headers["content-type"].startswith("text/csv")
    later = list(csv.DictReader(io.StringIO(response.text)))
    assert [(row["amount_text"], row["balance"]) for row in later] == [("0.10 EUR", "1500"), ("-4.00 EUR", "1100")]
    earlier = (await get(florin, "statement", to=middle.isoformat())).text.splitlines()
    assert len(earlier) == 2
    assert (await get(florin, "statement", currency="USD", format="csv")).text.count("\n") == 1
    for query in ({"format": "xml"}, {"currency": "XXX"}, {"from": "monday"}):
        assert (await get(florin, "statement", **query)).json()["code"] == "invalid_query"


async def test_a_long_statement_comes_in_pages_and_holds_no_connection(florin: Florin, database_url: str) -> None:
    merchant_id = MerchantId(florin.demo.merchant_id)
    await florin.connection.execute(
        """
        INSERT INTO ledger_entries (merchant_id, seq, transfer_id, kind, account, currency, amount_minor, created_at)
        SELECT $1, 2 * n - 1 + side, md5(n::text)::uuid, 'charge',
               CASE side WHEN 0 THEN 'merchant_available' ELSE 'platform_fees' END, 'EUR',
               CASE side WHEN 0 THEN 1 ELSE -1 END, now()
          FROM generate_series(1, 2500) AS n, generate_series(0, 1) AS side
        """,
        (merchant_id,),
    )
    async with open_pool(database_url, size=1, role=Role.APP) as pool:
        pieces = statement(pool, merchant_id, Period(), Format.JSONL)
        first = await anext(pieces)
        async with pool.connection() as connection:
            assert await connection.query("SELECT 1") == [(1,)]
        rest = [piece async for piece in pieces]
    assert first.count(b"\n") == 1_000
    assert sum(piece.count(b"\n") for piece in rest) == 1_500
    assert msgspec.json.decode(rest[-1].splitlines()[-1])["balance"] == 2_500
    await florin.connection.execute("ALTER TABLE ledger_entries DISABLE TRIGGER ledger_entries_append_only")
    await florin.connection.execute("DELETE FROM ledger_entries")
    await florin.connection.execute("ALTER TABLE ledger_entries ENABLE TRIGGER ledger_entries_append_only")


async def test_a_balance_as_it_was(florin: Florin) -> None:
    before = utc_now() - timedelta(seconds=1)
    await charge(florin)
    then = utc_now()
    await charge(florin)
    assert (await get(florin, "wallets", at=before.isoformat())).json()["data"] == []
    assert (await get(florin, "wallets", at=then.isoformat())).json()["data"][0]["balance"] == 1_990
    assert (await get(florin, "wallets")).json()["data"][0]["balance"] == 3_980


@pytest.mark.any_postgres
async def test_the_chain_in_sql_is_the_chain_in_python(florin: Florin) -> None:
    payment = await charge(florin)
    await act(florin, payment, "refunds", amount=7)
    await florin.spend(5)
    await until_chained(florin)
    rows = await florin.connection.query(
        f"""
        SELECT e.seq, e.transfer_id, e.kind, e.account, e.payment_id, e.currency, e.amount_minor, e.created_at,
               {CANONICAL}, c.hash
          FROM ledger_entries e JOIN ledger_chain c ON c.merchant_id = e.merchant_id AND c.seq = e.seq ORDER BY e.seq
        """
    )
    assert len(rows) == 8
    previous = GENESIS
    for row in rows:
        entry = entry_of(row[:8])
        assert canonical(entry) == row[8]
        previous = link(previous, row[8])
        assert bytes(row[9]) == previous


async def test_two_workers_extend_one_chain(florin: Florin, database_url: str) -> None:
    for _ in range(3):
        await charge(florin)
    merchant_id = MerchantId(florin.demo.merchant_id)
    async with open_pool(database_url, size=4, role=Role.APP) as pool, trio.open_nursery() as nursery:

        async def one() -> None:
            async with pool.connection() as connection:
                while await extend_chains(connection, now=utc_now(), merchants=1, entries=1, merchant_id=merchant_id):
                    pass

        for _ in range(4):
            nursery.start_soon(one)
    await until_chained(florin)


async def test_a_receipt_is_verified_offline_and_no_change_passes(florin: Florin) -> None:
    payment = await charge(florin)
    await act(florin, payment, "refunds", amount=500)
    await until_chained(florin)
    text = (await get(florin, f"payments/{payment['id']}/receipt")).text
    keys = (await get(florin, "receipt-keys")).json()["keys"]

    receipt = receipts.read(text, keys)

    assert receipt.payment["id"] == payment["id"]
    assert [(entry.kind, entry.amount_minor) for entry in receipt.entries if entry.account == "merchant_available"] == [
        ("charge", 1_990),
        ("refund", -500),
    ]
    head, body, signature = text.split(".")
    for forged in (
        f"{head}.{body[:-2]}AA.{signature}",
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"{head}.{body}",
        "",
        "a.b.c",
        f"eyJhbGciOiJub25lIn0.{body}.",
    ):
        with pytest.raises(InvalidSignature):
            receipts.read(forged, keys)
    with pytest.raises(InvalidSignature, match="any of the given keys"):
        receipts.read(text, [])


async def test_there_is_no_receipt_for_nothing(florin: Florin) -> None:
    payment = await florin.create()
    assert (await get(florin, f"payments/{payment['id']}/receipt")).json()["code"] == "no_receipt"


async def test_payouts_need_two_operators_and_can_be_returned(florin: Florin) -> None:
    await charge(florin)
    with pytest.raises(Conflict, match=r"only 19\.90 EUR is available"):
        await florin.spend(1_991)
    await florin.spend(1_000)
    merchant_id = MerchantId(florin.demo.merchant_id)
    payout = (await list_payouts(florin.connection, merchant_id))[0]
    with pytest.raises(Conflict, match="SUCCEEDED"):
        await payouts.approve(florin.connection, merchant_id, payout.id, an_act(florin, "Grace"))
    assert (await florin.wallets())[0]["balance"] == 990
    returned = await payouts.end(
        florin.connection, merchant_id, payout.id, PayoutStatus.FAILED, an_act(florin), failure="account closed"
    )
    assert returned.status == "FAILED"
    assert (await florin.wallets())[0]["balance"] == 1_990
    with pytest.raises(Conflict):
        await payouts.end(florin.connection, merchant_id, payout.id, PayoutStatus.SUCCEEDED, an_act(florin))
    assert len(await florin.rows("SELECT 1 FROM audit_log")) == 4


@pytest.mark.any_postgres
async def test_wallets_are_rebuilt_from_the_ledger_while_payments_are_taken(florin: Florin) -> None:
    await charge(florin)
    await florin.connection.execute("UPDATE wallets SET balance_minor = 1")
    merchant_id = MerchantId(florin.demo.merchant_id)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(charge, florin)
        corrections = await rebuild_wallets(florin.connection, merchant_id, an_act(florin))
    assert [correction.kind for correction in corrections] == ["available"]
    assert (await florin.wallets())[0]["balance"] == 11 * 1_990
    assert await rebuild_wallets(florin.connection, merchant_id, an_act(florin)) == []


FORBIDDEN = {
    Role.APP: [
        "UPDATE ledger_entries SET amount_minor = 1",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
        "DELETE FROM ledger_chain",
        "UPDATE events SET data = ''",
        "DELETE FROM audit_log",
        "UPDATE payment_logs SET to_status = 'SUCCEEDED'",
        "DELETE FROM payment_requests",
        "INSERT INTO merchants SELECT * FROM merchants",
        "UPDATE psp_accounts SET base_url = ''",
        "DROP TABLE wallets",
        "ALTER TABLE ledger_entries DISABLE TRIGGER ALL",
        "CREATE TABLE mine (x integer)",
    ],
    Role.CONSOLE: [
        "UPDATE payment_requests SET status = 'SUCCEEDED'",
        "DELETE FROM ledger_entries",
        "UPDATE audit_log SET actor = ''",
    ],
    Role.READ: [
        "SELECT sealed_api_key FROM psp_accounts",
        "SELECT secret_sha256 FROM api_keys",
        "UPDATE wallets SET balance_minor = 0",
    ],
}


@pytest.mark.parametrize("role", FORBIDDEN)
async def test_roles_cannot_exceed_their_privileges(database_url: str, role: Role) -> None:
    connection = await Connection.open(database_url, role=role)
    assert await connection.query("SELECT current_user") == [(role.value,)]
    for statement_ in FORBIDDEN[role]:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement_)
    connection.discard()


async def test_workers_work_as_the_app(florin: Florin) -> None:
    roles = await florin.rows(
        "SELECT usename FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'florin%'"
    )
    assert roles
    async with florin.payments.pool.connection() as connection:
        assert await connection.query("SELECT current_user") == [("florin_app",)]
