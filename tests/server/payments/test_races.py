"""Races in between: stale answers, second checks, mismatching money, broken endpoints, a PSP that forgets."""

import os
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
import trio
from msgspec.structs import replace

from core.evidence import Evidence, EvidenceKind, Source
from core.ids import PAYMENT, MerchantId, PaymentId, decode_id
from core.payment import Payment, Status
from server.db.connection import Connection
from server.db.group_commit import Committer
from server.db.payments.creations import Creation, CreationGroup
from server.db.payments.payments import find_payment
from server.flows.payments.settle import settle
from server.http.client.client import ClientOptions, open_client
from server.http.client.errors import NotSent
from tests.support.changes import a_creation, a_payment
from tests.support.florin import Florin, eventually, order
from tests.support.http import serving
from tests.support.payments import captured_event, send_event


async def stored(florin: Florin, payment_id: str) -> Payment:
    async with florin.payments.pool.connection() as connection:
        found = await find_payment(connection, MerchantId(florin.demo.merchant_id), PaymentId(decode_id(PAYMENT, payment_id)))
    assert found is not None
    return found


def about(payment: Payment, kind: EvidenceKind, source: Source = Source.RECHECK, **fields: Any) -> Evidence:
    return Evidence(kind=kind, source=source, psp_account_id=payment.psp_account_id, operation_id=payment.operation_id, **fields)


async def forget_the_answer(florin: Florin, payment_id: str) -> None:
    """As if the first request had died between its two transactions, a while ago."""
    uuid = decode_id(PAYMENT, payment_id)
    await florin.connection.execute("UPDATE payment_requests SET reference = NULL, payment_url = NULL WHERE id = $1", (uuid,))
    await florin.connection.execute(
        "UPDATE idempotency_keys SET reply_status = NULL, reply_body = NULL, in_flight_until = now() WHERE payment_id = $1",
        (uuid,),
    )


async def test_evidence_about_the_payment_as_it_was_is_dropped_when_it_has_changed(florin: Florin) -> None:
    payment = await florin.create()
    now = await stored(florin, payment["id"])
    before = replace(now, version=1, reference=None, payment_url=None)
    for kind in (EvidenceKind.EXPIRED, EvidenceKind.UNREACHABLE, EvidenceKind.REJECTED):
        settled = await settle(
            florin.payments, now.merchant_id, now.id, about(before, kind), known=before, only_if_unchanged=True
        )
        assert settled is not None
        assert not settled.changed
    assert (await stored(florin, payment["id"])).status is Status.PENDING


async def test_a_second_check_is_younger_than_the_first(florin: Florin) -> None:
    payment = await stored(florin, (await florin.create())["id"])
    declined = about(payment, EvidenceKind.DECLINED, reference=payment.reference)
    looks = [
        await settle(florin.payments, payment.merchant_id, payment.id, declined, known=payment, only_if_unchanged=True)
        for _ in range(2)
    ]
    assert [look.changed for look in looks if look] == [True, False]
    rows = await florin.rows("SELECT status FROM payment_requests")
    assert rows == [{"status": "PENDING"}]
    # The follow-up job asks the PSP, whose page is open: the decline is contradicted, and another card may be tried.
    await florin.connection.execute("UPDATE payment_requests SET due_at = now()")
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests WHERE decline_code IS NULL AND version > 3"))
    await florin.connection.execute("UPDATE payment_requests SET expires_at = now(), due_at = now()")
    await florin.until_stored(f"pay_{payment.id.hex}", "EXPIRED")


async def test_a_payment_that_was_opened_after_it_was_over_is_closed_again(florin: Florin) -> None:
    payment = await florin.create()
    url = payment["payment_url"]
    await forget_the_answer(florin, payment["id"])
    await florin.control(create="slow")

    async def expire_meanwhile() -> None:
        await trio.sleep(0.3)
        now = await stored(florin, payment["id"])
        await settle(florin.payments, now.merchant_id, now.id, about(now, EvidenceKind.EXPIRED, reference=None))

    key = (await florin.rows("SELECT key FROM idempotency_keys"))[0]["key"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expire_meanwhile)
        await florin.post(order(), key=key)
    assert "can no longer be made" in (await florin.http.get(url)).text


async def test_a_retry_while_the_psp_is_away_says_so(florin: Florin) -> None:
    await florin.post(order(), key="k")
    payment_id = (await florin.rows("SELECT id FROM payment_requests"))[0]["id"]
    await forget_the_answer(florin, f"pay_{payment_id.hex}")
    account = florin.demo.psp_account_id
    await florin.connection.execute("UPDATE payment_requests SET psp_account_id = gen_random_uuid()")
    away = await florin.post(order(), key="k")
    assert (away.status_code, away.json()["code"]) == (502, "psp_unreachable")
    assert away.json()["payment"]["status"] == "PENDING"
    await florin.connection.execute("UPDATE payment_requests SET psp_account_id = $1", (account,))

    back = await florin.post(order(), key="k")
    again = await florin.post(order(), key="k")

    assert back.status_code == again.status_code == 201
    assert back.content == again.content


async def test_a_psp_that_has_forgotten_a_payment_ends_in_a_finding(florin: Florin) -> None:
    payment = await florin.create()
    await florin.connection.execute("UPDATE payment_requests SET reference = 'int_gone', expires_at = now()")

    async def look_again() -> bool:
        await florin.connection.execute("UPDATE payment_requests SET due_at = now() WHERE due_at IS NOT NULL")
        return bool(await florin.rows("SELECT 1 FROM findings WHERE kind = 'outcome_unknown'"))

    assert await eventually(look_again)
    row = await florin.row(payment["id"])
    assert (row["status"], row["due_at"], row["checks"]) == ("PENDING", None, 10)


async def test_all_money_that_matches_nothing_is_in_suspense_once(florin: Florin) -> None:
    payment = await florin.create()
    row = await florin.row(payment["id"])
    for number, (amount, reference) in enumerate([(5, "int_a"), (7, "int_b"), (5, "int_a"), (0, "int_c"), (10**30, "int_d")]):
        event = captured_event(florin, row)
        event["id"] = f"sbe_{number}"
        event["data"] |= {"captured_minor": amount, "id": reference}
        await send_event(florin, event)
    entries = await florin.rows("SELECT amount_minor FROM ledger_entries WHERE account = 'suspense' ORDER BY amount_minor")
    assert [entry["amount_minor"] for entry in entries] == [5, 7]
    assert (await florin.row(payment["id"]))["due_at"] is None
    await send_event(florin, {**captured_event(florin, row), "id": "sbe_true"})
    assert (await florin.row(payment["id"]))["status"] == "SUCCEEDED"


async def test_one_event_is_logged_once_however_often_it_comes(florin: Florin) -> None:
    payment = await florin.create()
    event = captured_event(florin, await florin.row(payment["id"]))
    event["type"] = "intent.attempt_failed"
    event["data"] |= {"status": "open", "last_decline_code": "card_declined"}
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(send_event, florin, event)
    assert len(await florin.rows("SELECT 1 FROM payment_logs WHERE kind = 'attempt_failed'")) == 1


BAD_ADDRESSES = [
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1/\u0445",
    "http://a..b/",
    f"http://{'a' * 64}.x/",
    "ftp://x/",
    "http://[",
]


async def test_an_endpoint_that_cannot_be_called_affects_no_other(florin: Florin) -> None:
    for url in BAD_ADDRESSES:
        await florin.connection.execute(
            """
            INSERT INTO webhook_endpoints (merchant_id, id, url, sealed_secret, enabled, created_at)
            SELECT merchant_id, gen_random_uuid(), $1, sealed_secret, true, created_at FROM webhook_endpoints WHERE id = $2
            """,
            (url, florin.demo.endpoint_id),
        )
    payment = await florin.create()
    await florin.pay(payment)

    await florin.until_told(payment["id"], "payment.succeeded")

    async def all_tried() -> bool:
        rows = await florin.rows("SELECT last_error FROM deliveries WHERE endpoint_id <> $1", florin.demo.endpoint_id)
        return len(rows) == len(BAD_ADDRESSES) and all(row["last_error"] for row in rows)

    assert await eventually(all_tried)
    assert (await florin.http.get(f"{florin.api_url}/healthz")).status_code == 200
    await florin.connection.execute("UPDATE deliveries SET attempts = 10, due_at = now() WHERE state = 'PENDING'")
    await eventually(lambda: florin.rows("SELECT 1 WHERE NOT EXISTS (SELECT FROM deliveries WHERE state = 'PENDING')"))


@pytest.mark.slow
async def test_deliveries_to_an_endpoint_that_hangs_lose_no_attempt_unsent(florin: Florin) -> None:
    received = 0

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        nonlocal received
        received += 1
        await trio.sleep_forever()

    async with serving(hang) as (_, port):
        await florin.connection.execute("UPDATE webhook_endpoints SET url = $1", (f"http://127.0.0.1:{port}/",))
        payment = await florin.create()
        await florin.pay(payment)
        await florin.until_stored(payment["id"], "SUCCEEDED")
        await florin.connection.execute(
            """
            INSERT INTO events SELECT merchant_id, n, gen_random_uuid(), type, payment_id, data, created_at
              FROM events, generate_series(2, 200) AS n
            """
        )
        await florin.connection.execute(
            """
            INSERT INTO deliveries (merchant_id, endpoint_id, event_seq, state, attempts, due_at, created_at, updated_at)
            SELECT merchant_id, endpoint_id, n, 'PENDING', 0, now(), now(), now() FROM deliveries, generate_series(2, 200) AS n
            """
        )
        await eventually(lambda: florin.rows("SELECT 1 FROM deliveries WHERE last_error LIKE 'no answer%'"))

        async def is_given_back() -> bool:
            rows = await florin.rows("SELECT sum(attempts)::integer AS claimed FROM deliveries")
            return int(rows[0]["claimed"]) <= received + 1

        assert await eventually(is_given_back), "a claim that was not sent must not stay counted"
        await florin.connection.execute("UPDATE deliveries SET state = 'DEAD', due_at = NULL")
    # The events were made up, so the doctor would rightly object.
    await florin.connection.execute("ALTER TABLE events DISABLE TRIGGER events_append_only")
    await florin.connection.execute("DELETE FROM events WHERE seq > 1")
    await florin.connection.execute("DELETE FROM deliveries WHERE event_seq > 1")
    await florin.connection.execute("ALTER TABLE events ENABLE TRIGGER events_append_only")


async def test_a_lost_webhook_is_noticed_before_the_payment_expires(florin: Florin) -> None:
    await florin.control(webhooks="hold")
    payment = await florin.create(expires_in=604_800)
    row = await florin.row(payment["id"])
    assert (row["due_at"] - row["created_at"]).total_seconds() < 700
    await florin.connection.execute("UPDATE payment_requests SET due_at = now()")
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests WHERE due_at > now() + interval '9 minutes'"))
    await florin.pay(payment)
    await florin.connection.execute("UPDATE payment_requests SET due_at = now()")
    await florin.until_stored(payment["id"], "SUCCEEDED")
    await florin.control(webhooks="release")


async def test_a_call_without_a_connection_in_time_was_not_sent() -> None:
    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    options = ClientOptions(connections_per_origin_max=1, connect_seconds=0.1)
    async with serving(hang) as (_, port), open_client(options) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.request, "GET", f"http://127.0.0.1:{port}/")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(NotSent):
            await client.request("GET", f"http://127.0.0.1:{port}/")
        nursery.cancel_scope.cancel()


async def test_a_commit_is_on_disk_whatever_the_default(database_url: str, connection: Connection) -> None:
    name = database_url.rpartition("/")[2]
    await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    seen: list[str] = []

    class Looking(CreationGroup):
        async def write(self, connection: Connection, items: Any) -> Any:
            seen.append((await connection.query("SHOW synchronous_commit"))[0][0])
            return [None for _ in items]

    committer = Committer[Creation, Any](Looking(worker_id=UUID(int=1)), database_url)
    async with trio.open_nursery() as nursery:
        await nursery.start(committer.run)
        await committer.submit(a_creation(a_payment(MerchantId(UUID(int=1)))))
        nursery.cancel_scope.cancel()
    assert seen == ["on"]


async def test_order_ids_that_are_accepted_please_the_doctor(florin: Florin) -> None:
    for order_id in ("cart_4242424242424242abcdef0123456789", "4242424242424242abcdef-1", "pay_01a1febadae4752f95f1ab3274be0128"):
        await florin.create(order_id=order_id)


_FAILING = """
import structlog
from server.telemetry import configure_logs
configure_logs("warning")
def fail(secret):
    raise ValueError("on purpose")
try:
    fail("fl_test_" + "5" * 8)
except ValueError:
    structlog.get_logger().exception("failed")
"""


def test_tracebacks_on_a_terminal_never_show_local_variables() -> None:
    ours, terminal = os.openpty()
    subprocess.run([sys.executable, "-c", _FAILING], stderr=terminal, check=True)
    os.close(terminal)
    printed = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "on purpose" in printed
    assert "fl_test_55555555" not in printed
