"""Measures the cost of a payment as the tables grow: fills the database step by step and runs `sync` at each size.

The rows are written in SQL, a hundred thousand payments at a time, each with its key, operation, logs, event, ledger entries and
delivery, as a payment leaves them. Only the hash chain is not computed: its head is set to where it would be, so that the worker
does not chain these rows during the measurement. `florin doctor` would rightly object to such a chain, and is not run.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec
import trio
from rich.table import Table

from bench.lab.load import Load, open_generators
from bench.lab.options import RunOptions
from bench.lab.results import Measurement, Report, new_report
from bench.lab.run import measure, warm_up
from bench.lab.scenarios import SCENARIOS
from bench.lab.subjects import Setup, Subject, open_florin
from bench.measure import CpuMeter
from server.db.connection import Connection, open_session

STEP = 100_000
SIZE_MAX = 100_000_000
TIDY_SECONDS_MAX = 900.0
QUIET_TIMES, QUIET_SHARE = 5, 0.1
"""PostgreSQL counts as quiet after this many seconds in which it used at most this part of a core."""
_ID = "('0180' || lpad(to_hex(n), 8, '0') || '7{}00800000000000000{}')::uuid"
_FROM = """
    generate_series($2::integer, $3::integer) AS n
    JOIN LATERAL (SELECT ($1::uuid[])[1 + (n - $2) % $4::integer] AS merchant_id) AS m ON true
    LEFT JOIN merchant_sequences AS s USING (merchant_id)"""
_MOMENT = "timestamptz '2022-04-01' + n * interval '1 second'"
_SEQ = "coalesce(s.last_seq, 0) + 1 + (n - $2) / $4::integer"
_ENTRY = "coalesce(s.last_ledger_seq, 0) + 1 + 2 * ((n - $2) / $4::integer) + side"
_STATEMENTS = (
    f"""
    INSERT INTO idempotency_keys (
        merchant_id, key, fingerprint, payment_id, in_flight_until, created_at, reply_status, reply_seq)
    SELECT merchant_id, 'stored-' || n, sha256(n::text::bytea), {_ID.format(0, 1)}, {_MOMENT}, {_MOMENT}, 201, {_SEQ}
      FROM {_FROM}
    """,
    f"""
    INSERT INTO payment_requests (
        merchant_id, id, psp_account_id, operation_id, order_id, amount_minor, currency, status, version, reference,
        idempotency_key, captured_minor, expires_at, created_at, updated_at, is_sync)
    SELECT merchant_id, {_ID.format(0, 1)}, $5::uuid, {_ID.format(1, 1)}, 'order-' || n, 1990, 'EUR', 'SUCCEEDED', 2, 'pi_' || n,
           'stored-' || n, 1990, {_MOMENT}, {_MOMENT}, {_MOMENT}, true
      FROM {_FROM}
    """,
    f"""
    INSERT INTO psp_operations (
        merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
    SELECT merchant_id, {_ID.format(1, 1)}, {_ID.format(0, 1)}, $5::uuid, 'charge', 1990, 'EUR', 'DONE', {_MOMENT} FROM {_FROM}
    """,
    f"""
    INSERT INTO payment_logs (merchant_id, id, payment_id, version, source, kind, from_status, to_status, reference, created_at)
    SELECT merchant_id, {_ID.format(2, 1)}, {_ID.format(0, 1)}, v, 'create', CASE v WHEN 1 THEN 'accepted' ELSE 'captured' END,
           CASE v WHEN 2 THEN 'PENDING' END, CASE v WHEN 1 THEN 'PENDING' ELSE 'SUCCEEDED' END, 'pi_' || n, {_MOMENT}
      FROM {_FROM} CROSS JOIN generate_series(1, 2) AS v
    """,
    f"""
    INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
    SELECT merchant_id, {_SEQ}, {_ID.format(3, 1)}, 'payment.succeeded', {_ID.format(0, 1)}, repeat('e', 700), {_MOMENT}
      FROM {_FROM}
    """,
    f"""
    INSERT INTO ledger_entries (
        merchant_id, seq, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
    SELECT merchant_id, {_ENTRY}, {_ID.format(0, 1)}, 'charge',
           CASE side WHEN 1 THEN 'psp_receivable' ELSE 'merchant_available' END, {_ID.format(0, 1)}, 'EUR',
           CASE side WHEN 1 THEN -1990 ELSE 1990 END, {_MOMENT}
      FROM {_FROM} CROSS JOIN generate_series(0, 1) AS side
    """,
    f"""
    INSERT INTO deliveries (
        merchant_id, endpoint_id, event_seq, state, attempts, last_status, created_at, updated_at, is_ordered)
    SELECT merchant_id, e.id, {_SEQ}, 'DELIVERED', 1, 200, {_MOMENT}, {_MOMENT}, false
      FROM {_FROM} JOIN webhook_endpoints e USING (merchant_id)
    """,
)
_HEADS = (
    """
    INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq)
    SELECT l.merchant_id, l.last_seq, l.last_ledger_seq
      FROM unnest($1::uuid[]) AS m (merchant_id)
     CROSS JOIN LATERAL (
            SELECT m.merchant_id,
                   (SELECT max(seq) FROM events e WHERE e.merchant_id = m.merchant_id) AS last_seq,
                   (SELECT max(seq) FROM ledger_entries e WHERE e.merchant_id = m.merchant_id) AS last_ledger_seq) l
     WHERE l.last_seq IS NOT NULL
    ON CONFLICT (merchant_id) DO UPDATE SET last_seq = excluded.last_seq, last_ledger_seq = excluded.last_ledger_seq
    """,
    """
    INSERT INTO ledger_chain (merchant_id, seq, hash, created_at)
    SELECT merchant_id, last_ledger_seq, sha256(merchant_id::text::bytea), now()
      FROM merchant_sequences WHERE merchant_id = ANY ($1::uuid[]) AND last_ledger_seq > 0
    ON CONFLICT (merchant_id, seq) DO NOTHING
    """,
)


async def grow(
    sizes: Sequence[int], *, count: int, rounds: int, told: Callable[[str, Load | None], None]
) -> tuple[Report, dict[int, list[Measurement]]]:
    """Measure `sync` at each size. Returns the report, and the measurements by size."""
    scenario = SCENARIOS["sync"]
    options = RunOptions(scenario="sync", count=count, seconds=60.0)
    found: dict[int, list[Measurement]] = {}
    stored = 0
    async with open_generators(1) as generators, open_florin(Setup(), generators) as subject:
        told("warming up", None)
        await warm_up(options, scenario, subject, generators)
        assert subject.database_url is not None
        async with open_session(subject.database_url) as connection:
            postgres = str((await connection.query("SHOW server_version"))[0][0])
            for size in sorted(sizes):
                while stored < size:
                    step = min(STEP, size - stored)
                    told(f"storing {size:,} payments: {stored:,}", None)
                    await _store(connection, subject, 1 + stored, step)
                    stored += step
                told("waiting for PostgreSQL's vacuum and checkpoint", None)
                await _settle(connection, subject)
                title = f"{size:,} stored"
                found[size] = []
                for number in range(1, rounds + 1):
                    one = await measure(options, scenario, subject, generators, partial(told, title), number=number)
                    found[size].append(msgspec.structs.replace(one, subject=title))
    every = [one for group in found.values() for one in group]
    return new_report(f"florin bench growth --sizes {','.join(map(str, sizes))}", every, {}, postgres=postgres), found


async def _store(connection: Connection, subject: Subject, first: int, count: int) -> None:
    """Store that many more payments, evenly over the merchants."""
    merchants = subject.merchants
    values = (list(merchants.ids), first, first + count - 1, len(merchants.ids))
    async with connection.atomic():
        for statement in _STATEMENTS:
            needs_account = "$5" in statement
            await connection.run(statement, *values, *((merchants.psp_account_id,) if needs_account else ()))
        for statement in _HEADS:
            await connection.run(statement, list(merchants.ids))


async def _settle(connection: Connection, subject: Subject) -> None:
    """Run autovacuum's and the checkpointer's work now, so that it does not happen during the measurement."""
    await connection.execute("VACUUM (ANALYZE)")
    await connection.execute("CHECKPOINT")
    with trio.move_on_after(TIDY_SECONDS_MAX):
        quiet = 0
        while quiet < QUIET_TIMES:
            meter = CpuMeter.start({"PostgreSQL": subject.components["PostgreSQL"]})
            await trio.sleep(1.0)
            quiet = quiet + 1 if meter.used_seconds()["PostgreSQL"] < QUIET_SHARE else 0


def sizes_table(found: Mapping[int, Sequence[Measurement]]) -> Table:
    """The medians at each size, for the terminal."""
    shown = Table("stored", "worker µs", "PostgreSQL µs", "p50 ms", "p99 ms", box=None)
    for size, group in found.items():
        cpu = [f"{statistics.median(one.cpu_us[name] for one in group):,.0f}" for name in ("worker", "PostgreSQL")]
        times = [statistics.median(one.latencies["ok"].at(label) or 0.0 for one in group) for label in ("p50", "p99")]
        shown.add_row(f"{size:,}", *cpu, *[f"{one:,.1f}" for one in times])
    return shown
