"""`python -m bench.micro.doctor`: the time and memory of `florin doctor` on a database of many payments.

The payments are written by SQL, as a healthy Florin would have left them: one in a hundred has a refund, all belong to a hundred
merchants. The doctor must find nothing, so a mistake here shows.
"""

import resource
import sys
import time
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console

from bench.measure import scratch_directory
from server.db.connection import Connection
from server.db.doctor.check import Check
from server.db.doctor.run import broken_promises
from server.db.ledger.hash_chain import CANONICAL
from server.db.migrate import migrate
from server.process.embedded_postgres import open_embedded

MERCHANTS = 100
_console = Console(highlight=False)
_STATEMENTS = (
    """
    CREATE TEMP TABLE n AS
    SELECT i, md5('m' || i % :merchants)::uuid AS m, md5('p' || i)::uuid AS p, md5('o' || i)::uuid AS o,
           md5('r' || i)::uuid AS r, i % 100 = 0 AS back, now() - interval '1 day' + i * interval '50 ms' AS at
      FROM generate_series(1, :payments) AS i
    """,
    "CREATE TEMP TABLE steps AS SELECT n.*, false AS is_refund FROM n UNION ALL SELECT n.*, true FROM n WHERE back",
    """
    CREATE TEMP TABLE numbered AS
    SELECT steps.*, row_number() OVER (PARTITION BY m ORDER BY is_refund, i) AS seq FROM steps
    """,
    """
    INSERT INTO merchants (merchant_id, name, mode, psp_account_id, created_at)
    SELECT DISTINCT m, 'shop', 'test', md5('a')::uuid, now() FROM n
    """,
    """
    INSERT INTO payment_requests (
           merchant_id, id, psp_account_id, operation_id, order_id, amount_minor, currency, status, version, reference,
           description, idempotency_key, captured_minor, refunded_minor, expires_at, created_at, updated_at, is_sync,
           metadata)
    SELECT m, p, md5('a')::uuid, o, 'order-' || (1764184108123 + i), 1990, 'EUR', 'SUCCEEDED', 2 + back::integer, 'int_' || o,
           'three things from the shop', 'key-' || p, 1990, CASE WHEN back THEN 90 ELSE 0 END, at, at, at, true,
           json_build_object('cart', o)::text FROM n
    """,
    """
    INSERT INTO payment_logs (merchant_id, id, payment_id, version, source, kind, from_status, to_status, created_at)
    SELECT m, md5('l1' || i)::uuid, p, 1, 'create', 'accepted', NULL, 'PENDING', at FROM n
    UNION ALL SELECT m, md5('l2' || i)::uuid, p, 2, 'create', 'captured', 'PENDING', 'SUCCEEDED', at FROM n
    UNION ALL SELECT m, md5('l3' || i)::uuid, p, 3, 'merchant', 'refund_succeeded', 'SUCCEEDED', 'SUCCEEDED', at FROM n WHERE back
    """,
    """
    INSERT INTO psp_operations (merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
    SELECT m, o, p, md5('a')::uuid, 'charge', 1990, 'EUR', 'DONE', at FROM n
    UNION ALL SELECT m, r, p, md5('a')::uuid, 'refund', 90, 'EUR', 'DONE', at FROM n WHERE back
    """,
    """
    INSERT INTO refunds (
           merchant_id, payment_id, id, psp_account_id, amount_minor, currency, status, from_pending_minor, fee_minor,
           is_accepted, checks, created_at, updated_at)
    SELECT m, p, r, md5('a')::uuid, 90, 'EUR', 'SUCCEEDED', 0, 0, true, 0, at, at FROM n WHERE back
    """,
    """
    INSERT INTO ledger_entries (merchant_id, transfer_id, kind, account, payment_id, currency, amount_minor, created_at, seq)
    SELECT m, CASE WHEN is_refund THEN r ELSE p END, CASE WHEN is_refund THEN 'refund' ELSE 'charge' END, s.account, p, 'EUR',
           s.sign * CASE WHEN is_refund THEN -90 ELSE 1990 END, at, 2 * seq - s.off
      FROM numbered CROSS JOIN (VALUES ('merchant_available', 1, 1), ('psp_receivable:acct_x', -1, 0)) AS s (account, sign, off)
    """,
    """
    INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
    SELECT m, seq, md5('e' || i || is_refund)::uuid, CASE WHEN is_refund THEN 'refund.succeeded' ELSE 'payment.succeeded' END, p,
           json_build_object('id', CASE WHEN is_refund THEN 'ref_' || replace(r::text, '-', '') ELSE 'pay_' || p END,
                             'padding', repeat('x', 500)), at FROM numbered
    """,
    """
    INSERT INTO idempotency_keys (merchant_id, key, fingerprint, payment_id, in_flight_until, created_at, reply_status, reply_seq)
    SELECT m, 'key-' || p, decode(md5('f' || i) || md5('g' || i), 'hex'), p, at, at, 201, seq FROM numbered WHERE NOT is_refund
    """,
    """
    INSERT INTO wallets (merchant_id, currency, kind, balance_minor, updated_at)
    SELECT merchant_id, 'EUR', 'merchant_available', sum(amount_minor), now() FROM ledger_entries
     WHERE account = 'merchant_available' GROUP BY merchant_id
    """,
    """
    INSERT INTO merchant_sequences (merchant_id, last_seq, last_ledger_seq)
    SELECT m, max(seq), 2 * max(seq) FROM numbered GROUP BY m
    """,
    f"""
    INSERT INTO ledger_chain (merchant_id, seq, hash, created_at)
    WITH RECURSIVE links AS (
        SELECT merchant_id, 0::bigint AS seq, decode(repeat('00', 32), 'hex') AS hash FROM merchant_sequences
        UNION ALL
        SELECT l.merchant_id, e.seq, sha256(l.hash || convert_to({CANONICAL}, 'UTF8'))
          FROM links l JOIN ledger_entries e ON e.merchant_id = l.merchant_id AND e.seq = l.seq + 1
    )
    SELECT merchant_id, seq, hash, now() FROM links WHERE seq > 0
    """,
    "ANALYZE",
)


def command(
    payments: Annotated[int, typer.Option(min=1_000, help="Number of payments.")] = 1_000_000,
) -> None:
    """Fill a database, and let the doctor check it."""
    with scratch_directory() as directory:
        trio.run(_run, directory, payments)


async def _run(directory: Path, payments: int) -> None:
    async with open_embedded(directory) as embedded:
        url = embedded.server.url
        connection = await Connection.open(url)
        await migrate(connection)
        began = time.monotonic()
        for statement in _STATEMENTS:
            await connection.execute(statement.replace(":merchants", str(MERCHANTS)).replace(":payments", str(payments)))
        _console.print(f"{payments:,} payments written in {time.monotonic() - began:.0f} s")
        seconds = await _seconds_by_check(connection)
        for name, took in sorted(seconds.items(), key=lambda one: -one[1])[:8]:
            _console.print(f"{took:7.2f} s  {name}", markup=False)
        _console.print(f"{sum(seconds.values()):7.2f} s  all {len(seconds)} checks")
        connection.discard()
        began = time.monotonic()
        command = [str(Path(sys.executable).with_name("florin")), "doctor", "--database-url", url]
        done = await trio.run_process(command, capture_stdout=True, check=False)
        took = time.monotonic() - began
        verdict = (done.stdout.decode().strip() or "it printed nothing").splitlines()[-1]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1_024
        _console.print(f"florin doctor: {took:.1f} s, peak memory {peak:.0f} MiB, exit code {done.returncode}: {verdict}")
        if done.returncode:
            raise typer.Exit(1)


async def _seconds_by_check(connection: Connection) -> dict[str, float]:
    began: list[tuple[str, float]] = []

    def observe(check: Check) -> None:
        began.append((check.name, time.monotonic()))

    violations = await broken_promises(connection, observe)
    for violation in violations:
        _console.print(f"BROKEN {violation.check.name}: {violation.columns} {violation.rows[:2]}", markup=False)
    ends = [*(at for _, at in began[1:]), time.monotonic()]
    return {name: end - at for (name, at), end in zip(began, ends, strict=True)}


if __name__ == "__main__":
    typer.run(command)
