"""The rows of group commit, written by one statement each, in one transaction per step of a payment: the usual way."""

from bench.micro.commit_rows import ACCOUNT, FIRST_MERCHANT, Item
from server.db.connection import Connection

_KEY = """
INSERT INTO idempotency_keys (merchant_id, key, fingerprint, payment_id, in_flight_until, created_at)
VALUES ({0}, {1}, {2}, {3}, now(), now()) ON CONFLICT (merchant_id, key) DO NOTHING
"""
_PAYMENT = """
INSERT INTO payment_requests (
    merchant_id, id, psp_account_id, operation_id, order_id, amount_minor, currency, status, version, idempotency_key,
    expires_at, due_at, created_at, updated_at, is_sync)
VALUES ({0}, {1}, {2}, {3}, {4}, {5}, 'EUR', 'PENDING', 1, {6},
        now() + interval '1 min', now() + interval '1 min', now(), now(), true)
"""
_OPERATION = """
INSERT INTO psp_operations (
    merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
VALUES ({0}, {1}, {2}, {3}, 'charge', {4}, 'EUR', 'SENT', now())
"""
_LOG = """
INSERT INTO payment_logs (merchant_id, id, payment_id, version, source, kind, from_status, to_status, created_at)
VALUES ({0}, {1}, {2}, {3}, 'create', {4}, {5}, {6}, now())
"""
_LOCK = "SELECT version FROM payment_requests WHERE merchant_id = {0} AND id = {1} FOR UPDATE"
_SETTLE = """
UPDATE payment_requests
   SET status = 'SUCCEEDED', version = version + 1, reference = {2}, captured_minor = {3}, due_at = NULL, updated_at = now()
 WHERE merchant_id = {0} AND id = {1}
"""
_DONE = "UPDATE psp_operations SET state = 'DONE' WHERE merchant_id = {0} AND payment_id = {1} AND id = {2}"
_REPLY = "UPDATE idempotency_keys SET reply_status = 201, reply_body = {2} WHERE merchant_id = {0} AND key = {1}"
_SEQUENCE = """
INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq) VALUES ({0}, 1, 2)
ON CONFLICT (merchant_id) DO UPDATE SET last_seq = s.last_seq + 1, last_ledger_seq = s.last_ledger_seq + 2
RETURNING last_seq, last_ledger_seq
"""
_EVENT = """
INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
VALUES ({0}, {1}, {2}, 'payment.succeeded', {3}, {4}, now())
"""
_ENTRY = """
INSERT INTO ledger_entries (merchant_id, seq, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
VALUES ({0}, {1}, {2}, 'charge', {3}, {2}, 'EUR', {4}, now())
"""
_WALLET = """
INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
VALUES ({0}, 'EUR', 'merchant_available', {1}, now())
ON CONFLICT (merchant_id, currency, kind)
DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
"""
_ENDPOINT = "SELECT id FROM webhook_endpoints WHERE merchant_id = {0} AND enabled"
_DELIVERY = """
INSERT INTO deliveries (merchant_id, endpoint_id, event_seq, state, attempts, due_at, created_at, updated_at)
VALUES ({0}, {1}, {2}, 'PENDING', 1, now() + interval '30 s', now(), now())
"""
_DELIVERED = """
UPDATE deliveries SET state = 'DELIVERED', due_at = NULL, last_status = 200, updated_at = now()
 WHERE merchant_id = {0} AND endpoint_id = {1} AND event_seq = {2} AND attempts = 1 AND state = 'PENDING'
"""


def _numbered(sql: str) -> str:
    return sql.format(*(f"${number}" for number in range(1, 9)))


async def settle_by_statements(connection: Connection, item: Item) -> None:
    """Accept, settle and deliver one payment: three transactions, with a statement and a round trip for each row."""
    creation, row = item.creation, item.change
    payment, after = creation.payment, row.change.after
    merchant_id, payment_id, amount = payment.merchant_id, payment.id, payment.money.amount_minor

    async def run(sql: str, *params: object) -> list[tuple[object, ...]]:
        return await connection.query(_numbered(sql), *params)

    async with connection.atomic():
        await run(_KEY, merchant_id, creation.key, creation.fingerprint, payment_id)
        await run(
            _PAYMENT,
            merchant_id,
            payment_id,
            payment.psp_account_id,
            payment.operation_id,
            payment.order_id,
            amount,
            creation.key,
        )
        await run(_OPERATION, merchant_id, payment.operation_id, payment_id, payment.psp_account_id, amount)
        await run(_LOG, merchant_id, creation.log_id, payment_id, 1, "accepted", None, "PENDING")
    async with connection.atomic():
        await run(_LOCK, merchant_id, payment_id)
        await run(_SETTLE, merchant_id, payment_id, after.reference, after.captured_minor)
        await run(_LOG, merchant_id, row.log_id, payment_id, 2, "captured", "PENDING", "SUCCEEDED")
        await run(_DONE, merchant_id, payment_id, payment.operation_id)
        await run(_REPLY, merchant_id, creation.key, row.event_data.decode())
        seq, ledger_seq = (await run(_SEQUENCE, merchant_id))[0]
        assert isinstance(ledger_seq, int)
        await run(_EVENT, merchant_id, seq, row.event_id, payment_id, row.event_data.decode())
        assert row.transfer is not None
        for number, posting in enumerate(row.transfer.postings):
            await run(_ENTRY, merchant_id, ledger_seq - number, payment_id, posting.account, posting.money.amount_minor)
        await run(_WALLET, merchant_id, amount)
        endpoint_id = (await run(_ENDPOINT, merchant_id))[0][0]
        await run(_DELIVERY, merchant_id, endpoint_id, seq)
    await run(_DELIVERED, merchant_id, endpoint_id, seq)


def pgbench_script(*, merchants: int) -> str:
    """The script for pgbench: the same statements, with ids of its own, for that many merchants."""
    merchant = f"lpad(to_hex({FIRST_MERCHANT} + :m), 32, '0')::uuid"
    payment, operation, log, event = (f"md5('{letter}' || :n)::uuid" for letter in "pole")
    key, account = "md5('k' || :n)", f"'{ACCOUNT}'::uuid"
    body = f"'{'x' * 700}'"
    lines = [
        f"\\set m random(0, {merchants - 1})",
        "\\set n random(1, 4000000000000000000)",
        "BEGIN;",
        _KEY.format(merchant, key, "decode(repeat('00', 32), 'hex')", payment) + ";",
        _PAYMENT.format(merchant, payment, account, operation, "'order-4711'", "1990", key) + ";",
        _OPERATION.format(merchant, operation, payment, account, "1990") + ";",
        _LOG.format(merchant, log, payment, 1, "'accepted'", "NULL", "'PENDING'") + ";",
        "COMMIT;",
        "BEGIN;",
        _LOCK.format(merchant, payment) + ";",
        _SETTLE.format(merchant, payment, "'int_' || :n", "1990") + ";",
        _LOG.format(merchant, log, payment, 2, "'captured'", "'PENDING'", "'SUCCEEDED'") + ";",
        _DONE.format(merchant, payment, operation) + ";",
        _REPLY.format(merchant, key, body) + ";",
        _SEQUENCE.format(merchant) + " \\gset",
        _EVENT.format(merchant, ":last_seq", event, payment, body) + ";",
        _ENTRY.format(merchant, ":last_ledger_seq", payment, "'merchant_available'", "1990") + ";",
        _ENTRY.format(merchant, ":last_ledger_seq - 1", payment, "'psp_receivable:1'", "-1990") + ";",
        _WALLET.format(merchant, "1990") + ";",
        _ENDPOINT.format(merchant) + " \\gset",
        _DELIVERY.format(merchant, ":id::uuid", ":last_seq") + ";",
        "COMMIT;",
        _DELIVERED.format(merchant, ":id::uuid", ":last_seq") + ";",
    ]
    return "\n".join(line.replace("\n", " ") for line in lines) + "\n"
