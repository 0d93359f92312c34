"""Each check of the doctor finds its violation: every promise is broken once, on purpose."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from server.clock import utc_now
from server.db.connection import Connection
from server.db.doctor.notices import notices
from server.db.doctor.run import CHECKS, Violation, broken_promises, checks_of, estimated_seconds
from tests.support.florin import PAID, Florin, eventually
from tests.support.payments import act, until_chained
from tests.support.webhooks import until_delivered

_OPEN = "ALTER TABLE {0} DISABLE TRIGGER {0}_append_only"
_SHUT = "ALTER TABLE {0} ENABLE TRIGGER {0}_append_only"


def _append_only(table: str, statement: str) -> list[str]:
    return [_OPEN.format(table), statement, _SHUT.format(table)]


_BATCH = [
    """
    INSERT INTO batches (merchant_id, id, status, count, concurrency, deadline_seconds, deadline_at, created_at, started_at,
                         finished_at)
    SELECT merchant_id, gen_random_uuid(), 'COMPLETED', 1, 1, 1, now(), now(), now(), now() FROM merchant_sequences LIMIT 1
    """
]
_RESULT = """
    INSERT INTO batch_items (merchant_id, batch_id, number, position, type, status, payment_id, did_check_again, finished_at)
    SELECT merchant_id, id, 1, 1, 'charge', 'SUCCEEDED', gen_random_uuid(), false, now() FROM batches
    """
DAMAGE = {
    "every transfer sums to zero per currency": _append_only(
        "ledger_entries", "UPDATE ledger_entries SET amount_minor = amount_minor - 5 WHERE account LIKE 'psp%'"
    ),
    "every wallet is the sum of its ledger entries": ["UPDATE wallets SET balance_minor = balance_minor + 1"],
    "a payment is charged in the ledger exactly once if it succeeded, otherwise never": _append_only(
        "ledger_entries", "DELETE FROM ledger_entries"
    ),
    "a key has made one payment, whether or not it is still stored": [
        "UPDATE payment_requests SET idempotency_key = 'k'",
        "UPDATE payment_requests SET created_at = created_at - interval '29 days' WHERE order_id = 'open'",
    ],
    "no time lies further ahead than its rule allows": ["UPDATE payment_requests SET due_at = now() + interval '2 days'"],
    "an idempotency key and its payment belong together": ["UPDATE idempotency_keys SET payment_id = gen_random_uuid()"],
    "money that matches no payment is in suspense, with a finding": ["UPDATE payment_requests SET suspended = true"],
    "a successful reply names a stored payment": [
        "DELETE FROM payment_requests WHERE id IN (SELECT payment_id FROM idempotency_keys WHERE reply_status = 201)"
    ],
    "an open or unknown payment is never forgotten": ["UPDATE payment_requests SET due_at = NULL WHERE status = 'PENDING'"],
    "a payment has its operation at the PSP, of its own amount": ["UPDATE psp_operations SET amount_minor = 1"],
    "every change of a payment has its log row, and each log row starts where the previous one ended": _append_only(
        "payment_logs", "DELETE FROM payment_logs WHERE version = 2"
    ),
    "a merchant's sequence of events has no gap": ["UPDATE merchant_sequences SET last_seq = last_seq + 1"],
    "every settled status has exactly one event": _append_only("events", "UPDATE events SET type = 'payment.expired'"),
    "every event has a delivery to every endpoint that existed and selects it": [
        "UPDATE webhook_endpoints SET updated_at = created_at - interval '1 hour'",
        "DELETE FROM deliveries",
    ],
    "every delivery has its event and its endpoint": ["UPDATE deliveries SET endpoint_id = gen_random_uuid()"],
    "a delivery to an endpoint that answers is never forgotten": [
        "UPDATE deliveries SET state = 'PENDING', is_ordered = true, updated_at = now() - interval '2 hours'",
        "UPDATE webhook_endpoints SET lease_until = now() - interval '2 hours'",
    ],
    "no consumer is ahead of its merchant's events": [
        "INSERT INTO stream_cursors SELECT merchant_id, 'x', last_seq + 1, now(), now() FROM merchant_sequences"
    ],
    "attempts and checks are bounded": ["UPDATE deliveries SET attempts = 11"],
    "the server writes to disk before it answers": ["ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()"],
    "an item of a batch has charged at most once": [
        "UPDATE payment_requests SET idempotency_key = '§bat_' || repeat('0', 32) || ':1'",
        """
        INSERT INTO payment_requests SELECT (jsonb_populate_record(p, jsonb_build_object('id', gen_random_uuid()))).*
          FROM payment_requests p
        """,
    ],
    "an item that succeeded has its payment or its refund": [*_BATCH, _RESULT],
    "a completed batch has a result for each of its items, and no batch has more results than items": _BATCH,
    "a batch ends soon after its deadline": [
        *_BATCH,
        "UPDATE batches SET status = 'RUNNING', finished_at = NULL, sealed_items = '', deadline_at = now() - interval '1 hour'",
    ],
    "no text contains a card number": ["UPDATE payment_requests SET description = 'card 4242-4242 4242 4242.'"],
    "ledger, chain, logs, events and audit are append-only": ["DROP TRIGGER events_append_only ON events"],
    "a merchant's ledger entries are numbered without a gap": ["UPDATE merchant_sequences SET last_ledger_seq = 99"],
    "the hash chain of every merchant follows from its ledger": _append_only(
        "ledger_entries", "UPDATE ledger_entries SET created_at = created_at + interval '1 second'"
    ),
    "the refunded amount is the sum of the refunds, each posted once and returned once if it failed": [
        "UPDATE refunds SET amount_minor = amount_minor + 1"
    ],
    "the disputed money in the ledger is that of the payments": [
        "UPDATE payment_requests SET disputed_minor = 1 WHERE captured_minor > 0"
    ],
    "a payout is posted as its status says": [
        """
        INSERT INTO payouts (merchant_id, id, amount_minor, currency, status, requested_by, created_at, updated_at)
        SELECT merchant_id, gen_random_uuid(), 1, 'EUR', 'PENDING', 'Eve', now(), now() FROM merchants
        """
    ],
    "every transfer belongs to an existing object, in its currency": [
        """
        INSERT INTO ledger_entries (merchant_id, seq, transfer_id, kind, account, currency, amount_minor, created_at)
        SELECT merchant_id, last_ledger_seq + side, '00000000-0000-0000-0000-000000000001', 'gift',
               (ARRAY['bank', 'psp_fees'])[side], 'EUR', (ARRAY[5, -5])[side], now()
          FROM merchant_sequences, generate_series(1, 2) AS side
        """
    ],
    "returned fees are those of the refunds, and never more than the fee": [
        "UPDATE payment_requests SET fee_returned_minor = 1 WHERE captured_minor > 0"
    ],
    "money is released once, and no more than its payment brought in": [
        """
        INSERT INTO ledger_entries (
            merchant_id, seq, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
        SELECT merchant_id, last_ledger_seq + side, p.id, 'release',
               (ARRAY['merchant_available', 'merchant_pending'])[side], p.id, 'EUR', (ARRAY[5000, -5000])[side], now()
          FROM merchant_sequences JOIN payment_requests p USING (merchant_id), generate_series(1, 2) AS side
         WHERE p.captured_minor > 0
        """
    ],
    "pending money belongs to payments that are not released yet": [
        "INSERT INTO wallets SELECT merchant_id, 'EUR', 'merchant_pending', 1, now() FROM merchants"
    ],
    "the hash chain is at most an hour behind the ledger": [
        "ALTER TABLE ledger_chain DISABLE TRIGGER ledger_chain_append_only",
        "DELETE FROM ledger_chain",
        "REVOKE INSERT ON ledger_chain FROM florin_app",
        *_append_only("ledger_entries", "UPDATE ledger_entries SET created_at = now() - interval '2 hours'"),
    ],
    "every settled refund has exactly one event": _append_only(
        "events", "UPDATE events SET type = 'refund.failed' WHERE type LIKE 'refund%'"
    ),
    "an unsettled refund is never forgotten": ["UPDATE refunds SET status = 'PENDING'"],
    "every pending operation and every refund was committed as an operation": [
        "DELETE FROM psp_operations WHERE kind = 'refund'"
    ],
}


def test_every_check_is_tried() -> None:
    assert set(DAMAGE) == {check.name for check in CHECKS}


@pytest.fixture
async def database_in_use(florin: Florin) -> Florin:
    """A database with one paid and one open payment."""
    payment = await florin.create(description="order 1234567890123456 and 4242424242424241")
    await florin.pay(payment, PAID)
    await florin.until_told(payment["id"], "payment.succeeded")
    await act(florin, payment, "refunds", amount=1)
    await until_chained(florin)
    await until_delivered(florin)
    await florin.create(order_id="open")
    await florin.require_promises()
    return florin


@pytest.mark.parametrize("name", DAMAGE)
async def test_the_doctor_finds_it(database_in_use: Florin, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for statement in DAMAGE[name]:
        await database_in_use.connection.execute(statement)

    async def found() -> Violation | None:
        return next((one for one in await broken_promises(database_in_use.connection) if one.check.name == name), None)

    violation = await eventually(found)
    assert violation.rows
    assert violation.columns
    if violation.check.of_payments:
        connection = database_in_use.connection
        recent = await broken_promises(connection, since=utc_now() - timedelta(hours=1))
        assert name in {one.check.name for one in recent}
        assert await broken_promises(connection, since=utc_now() + timedelta(hours=1)) == [], "all are older"
    await database_in_use.connection.execute("ALTER SYSTEM RESET ALL")
    await database_in_use.connection.execute("SELECT pg_reload_conf()")
    monkeypatch.setattr(database_in_use, "require_promises", _nothing)


async def _nothing() -> None:
    """Replaces the check after the test: this database was damaged on purpose."""


async def test_a_window_finds_nothing_in_order(database_in_use: Florin) -> None:
    assert await broken_promises(database_in_use.connection, since=utc_now() - timedelta(hours=1)) == []
    assert len(checks_of(utc_now())) > 10
    assert await estimated_seconds(database_in_use.connection) < 60


async def test_the_doctor_notices_what_does_not_fit_together(florin: Florin) -> None:
    async def said(**moved: timedelta) -> str:
        found = await notices(florin.connection, now=utc_now() + moved.get("now", timedelta()))
        return "\n".join(one.title for one in found)

    assert await said() == ""
    assert "clock differs from the database's by +60.0 s" in await said(now=timedelta(seconds=60))
    for statement, title in {
        "UPDATE psp_accounts SET enabled = false": "Demo shop takes payments, and its account Sandbox does not",
        "UPDATE merchants SET mode = 'live'": "settings contradict each other: Demo shop is live and its account test",
        "INSERT INTO workers (id, seen_at, version) VALUES (gen_random_uuid(), now(), '0.0.9')": "workers of versions 0.0.9 and ",
        """INSERT INTO operators (id, name, role, password_hash, sealed_totp_secret, created_at)
           VALUES (gen_random_uuid(), 'ada', 'admin', 'x', 'x', now())""": "only 1 active operator may move money",
        """INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at)
           SELECT merchant_id, gen_random_uuid(), 'dispute', gen_random_uuid(), 'x', now() FROM merchants""": "open: 1,",
        "UPDATE api_keys SET expires_at = now() + interval '2 days'": "API keys expire, 1 within a week",
        """INSERT INTO operator_requests (merchant_id, id, kind, document, reason, state, needs_approval, requested_by,
               requested_by_name, created_at, expires_at, updated_at)
           SELECT merchant_id, gen_random_uuid(), 'refund', '{}', 'x', 'APPROVED', false, gen_random_uuid(), 'ada', now(), now(),
                  now() - interval '1 hour' FROM merchants""": "1 of the operators' requests wait since",
        "DELETE FROM schema_migrations WHERE number = 14": "the database lacks 0014_operators.sql",
        "INSERT INTO schema_migrations (number, name, sha256, applied_at) VALUES (99, 'x', 'x', now())": "ahead of florin",
    }.items():
        async with undone(florin.connection):
            await florin.connection.execute(statement)
            assert title in await said(), statement


@asynccontextmanager
async def undone(connection: Connection) -> AsyncIterator[None]:
    """A block whose changes are taken back."""
    await connection.execute("BEGIN")
    yield
    await connection.execute("ROLLBACK")


async def test_the_doctor_reads_metadata_as_the_guard_does(florin: Florin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither more, across the quotes of the stored JSON, nor less, past its escapes."""
    await florin.create(metadata={"a": "4111 1111", "1111 1111": "b"})
    await florin.require_promises()
    await florin.connection.execute("UPDATE payment_requests SET metadata = $1", (json.dumps({"a": "4111 1111\n1111 1111"}),))
    assert [one.check.name for one in await broken_promises(florin.connection)] == ["no text contains a card number"]
    monkeypatch.setattr(florin, "require_promises", _nothing)
