"""A PSP that fails, is slow or has no room harms nobody but those who need it, and money goes another way where that is safe."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import trio
import trio.testing

from core.breaker import CALLS_MIN, Admission, BreakerState
from core.errors import PspBusy
from core.evidence import Source
from core.ids import PAYMENT, PSP_ACCOUNT, MerchantId, PaymentId, PspAccountId, decode_id, encode_id
from core.money import Money
from core.payment import Payment, Status
from server.clock import utc_now
from server.db.merchants.audit import Act
from server.db.merchants.merchants import find_merchant
from server.db.payments.payments import find_payment
from server.db.psps.accounts import PspAccount, Route, add_psp_account, set_routes
from server.db.psps.shared_state import reserve_slots
from server.flows.contexts import Payments
from server.flows.payments import submit as open_flow
from server.flows.payments.verify import Verified, verify_all
from server.http.asgi import Receive, Scope, Send, read_body, respond
from server.http.server.listener import Listener, bind
from server.process.demo import load_or_draw
from server.process.worker import open_worker
from server.psp.guard import Guard, Limits, Shared
from server.sandbox.program import SandboxConfiguration, open_sandbox
from server.sealing import Sealer
from server.settings import Settings
from server.uuid7 import uuid7
from tests.support.florin import UNSHARED, Florin, eventually, open_florin, order


def a_guard(limits: Limits, shared: Shared = UNSHARED) -> Guard:
    return Guard(limits, shared, patience_seconds=5.0)


async def test_no_more_calls_at_once_than_agreed_first_come_first_served(autojump_clock: trio.testing.MockClock) -> None:
    guard, most, order_of_turns = a_guard(Limits(concurrency=3)), 0, list[int]()

    async def call(number: int) -> None:
        nonlocal most
        admission = await guard.admit()
        order_of_turns.append(number)
        most = max(most, guard.in_flight)
        await trio.sleep(1)
        guard.leave(admission, failed=False)

    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(call, number)
            await trio.testing.wait_all_tasks_blocked()
    turns = [sorted(order_of_turns[start : start + 3]) for start in (0, 3, 6)]  # trio shuffles those that are woken together
    assert (most, guard.in_flight, turns) == (3, 0, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])


async def test_who_waits_too_long_has_sent_nothing(autojump_clock: trio.testing.MockClock) -> None:
    guard = a_guard(Limits(concurrency=1))
    admission = await guard.admit()
    with pytest.raises(PspBusy):
        await guard.admit()
    guard.leave(admission, failed=False)
    guard.leave(await guard.admit(), failed=False)
    assert guard.in_flight == 0


async def test_calls_are_spread_over_the_second(autojump_clock: trio.testing.MockClock) -> None:
    used_until = 0.0

    async def reserve(slots: int, interval_seconds: float) -> float:
        nonlocal used_until
        await trio.lowlevel.checkpoint()
        used_until = max(used_until, trio.current_time()) + slots * interval_seconds
        return used_until - slots * interval_seconds - trio.current_time()

    guard, times = a_guard(Limits(requests_per_second=10.0), replace(UNSHARED, reserve=reserve)), list[float]()

    async def call() -> None:
        admission = await guard.admit()
        times.append(trio.current_time())
        guard.leave(admission, failed=False)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(call)
    times.sort()
    assert all(sum(start <= at < start + 1 for at in times) <= 10 for start in times)
    assert times[-1] - times[0] < 40 / 9


@pytest.mark.parametrize("wakes_by", ["cancel", "leave"])
async def test_a_cancelled_call_gives_its_place_back(autojump_clock: trio.testing.MockClock, wakes_by: str) -> None:
    guard = a_guard(Limits(concurrency=1, requests_per_second=1.0))
    admission = await guard.admit()
    with trio.move_on_after(1):
        await guard.admit()
    guard.leave(admission, failed=None)
    with trio.move_on_after(0.1 if wakes_by == "cancel" else 10):
        guard.leave(await guard.admit(), failed=None)
    assert guard.in_flight == 0


async def test_a_breaker_that_was_open_lets_one_call_try(autojump_clock: trio.testing.MockClock) -> None:
    guard = a_guard(Limits())
    for _ in range(CALLS_MIN):
        guard.leave(await guard.admit(), failed=True)
    assert guard.news is BreakerState.OPEN
    with pytest.raises(PspBusy):
        await guard.admit()
    await trio.sleep(11)
    probe = await guard.admit()
    assert probe is Admission.PROBE
    with pytest.raises(PspBusy):
        await guard.admit()
    guard.leave(probe, failed=False)
    assert (guard.news, guard.state) == (BreakerState.CLOSED, BreakerState.CLOSED)


async def test_workers_take_turns_in_one_schedule(florin: Florin) -> None:
    """Shares of two workers never overlap."""
    account = PspAccountId(uuid7())
    began = trio.current_time()
    ends = 0.0
    for _ in range(10):
        begins = trio.current_time() - began + await reserve_slots(florin.connection, account, slots=5, interval_seconds=0.1)
        assert begins >= ends - 0.02
        ends = begins + 0.5
    assert ends > 4.8


# Over HTTP: two PSPs, one of which fails


@asynccontextmanager
async def second_psp(florin: Florin, directory: Path) -> AsyncIterator[tuple[PspAccountId, str]]:
    """Another sandbox PSP, and the demo merchant's rule that it is the one to prefer."""
    sockets = [bind("127.0.0.1", 0) for _ in range(2)]
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    other = load_or_draw(directory / "other.json")
    account_id = PspAccountId(other.psp_account_id)
    configuration = SandboxConfiguration(
        florin_url=florin.api_url,
        psp_url=url,
        psp_api_key=other.psp_api_key,
        psp_webhook_url=other.psp_webhook_url(florin.api_url),
        psp_webhook_secret=other.psp_webhook_secret,
        shop_url=florin.shop_url,
        shop_api_key=other.api_key,
        shop_webhook_secret=other.webhook_secret,
    )
    sealer = Sealer.from_file(directory / "sealing.key")
    account = PspAccount(
        id=account_id,
        psp="sandbox",
        mode="test",
        base_url=url,
        sealed_api_key=sealer.seal(other.psp_api_key, table="psp_accounts.api_key", row=account_id),
        sealed_webhook_secret=sealer.seal(other.psp_webhook_secret, table="psp_accounts.webhook_secret", row=account_id),
    )
    await add_psp_account(florin.connection, account, now=utc_now())
    await florin.connection.execute(
        """
        INSERT INTO psp_routes (merchant_id, position, psp_account_id, currency) SELECT merchant_id, 1, $1, 'EUR' FROM merchants
        """,
        (account_id,),
    )
    await florin.payments.psps.reload()
    async with open_sandbox(configuration, sockets[0], sockets[1]):
        yield account_id, url


async def charge(florin: Florin, **fields: Any) -> Any:
    return await florin.post(order(confirm=True, token="tok_paid", **fields))


async def account_of(florin: Florin, payment_id: str) -> PspAccountId:
    return PspAccountId((await florin.row(payment_id))["psp_account_id"])


def metrics(florin: Florin) -> str:
    return florin.payments.metrics.exposition().decode()


async def test_rules_say_where_payments_go(florin: Florin, directory: Path) -> None:
    async with second_psp(florin, directory) as (other, _):
        euros = (await charge(florin)).json()
        dollars = (await charge(florin, currency="USD")).json()
        assert await account_of(florin, euros["id"]) == other
        assert await account_of(florin, dollars["id"]) == florin.demo.psp_account_id


def test_a_rule_fits_by_currency_and_amount() -> None:
    rule = Route(PspAccountId(uuid7()), "EUR", 100, 200)
    assert [rule.fits(Money(amount, "EUR")) for amount in (99, 100, 200, 201)] == [False, True, True, False]
    assert not rule.fits(Money(150, "USD"))
    assert Route(PspAccountId(uuid7())).fits(Money(1, "JPY"))


async def test_a_payment_that_never_reached_the_first_psp_goes_to_the_next(florin: Florin, directory: Path) -> None:
    async with second_psp(florin, directory) as (other, _):
        await florin.connection.execute("UPDATE psp_accounts SET base_url = 'http://127.0.0.1:9' WHERE id = $1", (other,))
        await florin.payments.psps.reload()
        sync = await charge(florin)
        page = await florin.post(order(order_id="order-2"))
        assert [sync.status_code, page.status_code] == [201, 201], (sync.text, page.text)
        for response in (sync, page):
            assert await account_of(florin, response.json()["id"]) == florin.demo.psp_account_id
        states = await florin.rows("SELECT psp_account_id = $1 AS is_first, state FROM psp_operations ORDER BY 1 DESC", other)
        assert [tuple(row.values()) for row in states] == [(True, "FAILED"), (True, "FAILED"), (False, "DONE"), (False, "DONE")]
        said, demo = metrics(florin), encode_id(PSP_ACCOUNT, florin.demo.psp_account_id)
        assert f'florin_psp_failovers_total{{from_account="{encode_id(PSP_ACCOUNT, other)}",to_account="{demo}"}} 2.0' in said


@pytest.mark.parametrize("fault", ["reset_before", "drop", "hang_before", "lose"])
async def test_a_payment_that_may_have_reached_the_first_psp_goes_nowhere_else(
    florin: Florin, directory: Path, fault: str
) -> None:
    async with second_psp(florin, directory) as (other, url):
        await florin.http.post(f"{url}/control", json={"create": fault, "webhooks": "hold"})
        response = await charge(florin)
        assert (response.status_code, response.json()["code"]) == (504, "psp_timeout"), response.text
        assert await account_of(florin, response.json()["payment"]["id"]) == other
        assert len(await florin.rows("SELECT 1 FROM psp_operations")) == 1


async def test_a_retry_that_takes_a_payment_up_keeps_the_first_request_from_another_psp(
    florin: Florin, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request stands still between its failure at one PSP and its going to the next, for as long as you like."""
    stands_still, may_go_on = trio.Event(), trio.Event()
    rerouting = open_flow.reroute

    async def stand_still(*given: Any, **named: Any) -> Any:
        stands_still.set()
        await may_go_on.wait()
        return await rerouting(*given, **named)

    async with second_psp(florin, directory) as (other, url):
        await florin.connection.execute("UPDATE psp_accounts SET base_url = 'http://127.0.0.1:9' WHERE id = $1", (other,))
        await florin.payments.psps.reload()
        monkeypatch.setattr(open_flow, "reroute", stand_still)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(florin.post, order(confirm=True, token="tok_paid"), key="k"))
            await stands_still.wait()
            await florin.connection.execute("UPDATE idempotency_keys SET in_flight_until = now() - interval '1 s'")
            await florin.connection.execute("UPDATE psp_accounts SET base_url = $1 WHERE id = $2", (url, other))
            await florin.payments.psps.reload()
            await florin.http.post(f"{url}/control", json={"latency": {"seconds": 0.5}, "count": "anew"})
            nursery.start_soon(partial(florin.post, order(confirm=True, token="tok_paid"), key="k"))

            async def is_charging() -> bool:
                return bool((await florin.http.post(f"{url}/control", json={})).json()["requests"] >= 2)

            await eventually(is_charging)
            may_go_on.set()
        (row,) = await florin.rows("SELECT status, psp_account_id FROM payment_requests")
        assert (row["status"], row["psp_account_id"]) == ("SUCCEEDED", other)
        headers = {"authorization": f"Bearer {florin.demo.psp_api_key}"}
        assert (await florin.http.get(f"{florin.psp_url}/v1/movements", headers=headers)).json()["data"] == []
        assert await florin.rows("SELECT 1 FROM findings") == []


async def test_an_open_breaker_is_shown_shared_and_gone_round(florin: Florin, directory: Path) -> None:
    async with second_psp(florin, directory) as (other, url):
        async with another_worker(florin, directory) as other_worker:
            await florin.http.post(f"{url}/control", json={"create": "drop"})
            for number in range(CALLS_MIN):
                await charge(florin, order_id=f"order-{number}")
            first = await florin.payments.psps.of(other)
            assert first.guard.state is BreakerState.OPEN
            assert f'florin_psp_breaker_state{{account="{encode_id(PSP_ACCOUNT, other)}",psp="sandbox"}} 2.0' in metrics(florin)

            response = await charge(florin, order_id="after")
            assert response.status_code == 201, response.text
            assert await account_of(florin, response.json()["id"]) == florin.demo.psp_account_id

            second = await other_worker.psps.of(other)
            await eventually(lambda: is_open(second.guard))
            await florin.http.post(f"{url}/control", json={"create": "answer"})
            await florin.connection.execute("UPDATE psp_states SET open_until = now()")
            for guard in (first.guard, second.guard):
                guard.breaker.open(until=trio.current_time())
            back = await charge(florin, order_id="back")
            assert await account_of(florin, back.json()["id"]) == other
            await eventually(lambda: is_closed(second.guard))
        assert 'breaker_state{account="' + encode_id(PSP_ACCOUNT, other) + '",psp="sandbox"} 0.0' in metrics(florin)


async def is_open(guard: Guard) -> bool:
    await trio.lowlevel.checkpoint()
    return guard.state is BreakerState.OPEN


async def is_closed(guard: Guard) -> bool:
    await trio.lowlevel.checkpoint()
    return guard.state is BreakerState.CLOSED


@asynccontextmanager
async def another_worker(florin: Florin, directory: Path) -> AsyncIterator[Payments]:
    settings = Settings(database_url=florin.database_url, key_file=directory / "sealing.key", sweep_seconds=60.0)
    async with open_worker(settings, bind("127.0.0.1", 0)) as contexts:
        await trio.lowlevel.checkpoint()
        yield contexts.payments


async def test_without_a_healthy_psp_nothing_is_taken_but_what_can_wait(florin: Florin) -> None:
    (adapter,) = florin.payments.psps.adapters
    done = await charge(florin, order_id="before")
    adapter.guard.breaker.open(until=trio.current_time() + 3)
    adapter.guard.news = BreakerState.OPEN

    refused = await charge(florin)
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "psp_unavailable", "1")
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 1
    page = await florin.post(order(order_id="page"), headers={"prefer": "respond-async"})
    assert page.status_code == 202, page.text
    assert done.status_code == 201

    async def opened() -> bool:
        await florin.connection.execute(
            "UPDATE payment_requests SET due_at = now() WHERE status = 'PENDING' AND due_at IS NOT NULL"
        )
        return (await florin.row(page.json()["id"]))["payment_url"] is not None

    await eventually(opened)


async def test_a_replay_is_answered_while_no_psp_is_healthy(florin: Florin) -> None:
    first = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    (adapter,) = florin.payments.psps.adapters
    adapter.guard.breaker.open(until=trio.current_time() + 5)
    adapter.guard.news = BreakerState.OPEN
    again = await florin.post(order(confirm=True, token="tok_paid"), key="k")
    assert (again.status_code, again.content) == (201, first.content)


async def test_an_account_that_is_stopped_takes_no_new_payments_and_finishes_old_ones(florin: Florin) -> None:
    payment = (await charge(florin, capture="manual")).json()
    await florin.connection.execute("UPDATE psp_accounts SET enabled = false")
    await florin.payments.psps.reload()
    refused = await charge(florin)
    assert (refused.status_code, refused.json()["code"]) == (503, "psp_unavailable")
    url = f"{florin.api_url}/v1/payments/{payment['id']}/capture"
    captured = await florin.http.post(url, json={}, headers={**florin.headers, "idempotency-key": "k"})
    assert (captured.status_code, captured.json()["status"]) == (200, "SUCCEEDED")


async def test_a_slow_psp_keeps_nobody_of_another_waiting(database_url: str, directory: Path) -> None:
    async with open_florin(database_url, directory, psp_seconds=2.0) as florin, second_psp(florin, directory) as (other, url):
        await florin.connection.execute("UPDATE psp_accounts SET concurrency_max = 4 WHERE id = $1", (other,))
        await florin.payments.psps.reload()
        await florin.http.post(f"{url}/control", json={"create": "hang_before"})
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(partial(charge, florin, order_id=f"slow-{number}"))
            slow = await florin.payments.psps.of(other)
            await eventually(lambda: is_full(slow.guard))
            began = time.monotonic()
            fast = await charge(florin, currency="USD")
            assert fast.status_code == 201
            assert time.monotonic() - began < 0.5
            nursery.cancel_scope.cancel()
        await florin.http.post(f"{url}/control", json={"create": "answer"})


async def is_full(guard: Guard) -> bool:
    await trio.lowlevel.checkpoint()
    return guard.in_flight == 4


async def stored_payments(florin: Florin, ids: list[str]) -> list[Payment]:
    """The payments as workers know them."""
    merchant_id = MerchantId(florin.demo.merchant_id)
    async with florin.payments.pool.connection() as connection:
        found = [await find_payment(connection, merchant_id, PaymentId(decode_id(PAYMENT, one))) for one in ids]
    return [payment for payment in found if payment is not None]


async def collect(receive: trio.MemoryReceiveChannel[Verified], into: list[Verified]) -> None:
    into.extend([one async for one in receive])


async def test_two_workers_together_never_flood_a_psp(florin: Florin, directory: Path) -> None:
    """The PSP itself counts: at most 40 requests in any second, although two workers have far more to send."""
    payments = [(await florin.create(order_id=f"order-{number}"))["id"] for number in range(40)]
    await florin.connection.execute("UPDATE psp_accounts SET requests_per_second_max = 40")
    await florin.payments.psps.reload()
    async with another_worker(florin, directory) as other_worker:
        await other_worker.psps.reload()
        await trio.sleep(1.1)  # what was counted before is over a second ago
        await florin.control(count="anew", requests_per_second_max=40)

        stored = await stored_payments(florin, payments)
        done = list[Verified]()
        async with trio.open_nursery() as nursery:
            for worker in (florin.payments, other_worker):
                send, receive = trio.open_memory_channel[Verified](100)
                nursery.start_soon(partial(verify_all, worker, stored, send, source=Source.ACCESS))
                nursery.start_soon(collect, receive, done)
        counted = await florin.control(requests_per_second_max=None)
    assert len(done) == 80
    assert not [one.failure for one in done if one.failure is not None]
    assert counted["floods"] == 0
    assert 80 <= counted["requests"] <= 90
    assert counted["requests_per_second_peak"] <= 40


# The fraud check


@asynccontextmanager
async def fraud_check(florin_settings: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """A fraud check on loopback that says what it is told to; `florin_settings` gets its address."""
    told: dict[str, Any] = {"verdict": "allow", "asked": []}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, bytes_max=100_000)
        told["asked"].append((dict(scope["headers"]).get(b"authorization"), msgspec.json.decode(body)))
        if told["verdict"] == "hang":
            await trio.sleep(1)
        status = 500 if told["verdict"] == "fail" else 200
        await respond(send, status, msgspec.json.encode({"verdict": told["verdict"]}), content_type=b"application/json")

    listening = bind("127.0.0.1", 0)
    florin_settings["fraud_url"] = f"http://127.0.0.1:{listening.getsockname()[1]}/check"
    florin_settings["fraud_token"] = "fraud-secret"
    async with trio.open_nursery() as nursery:
        await nursery.start(Listener(answer, listening).run)
        yield told
        nursery.cancel_scope.cancel()


async def test_the_fraud_check_decides_before_any_psp_hears_of_it(database_url: str, directory: Path) -> None:
    settings: dict[str, Any] = {}
    async with fraud_check(settings) as told, open_florin(database_url, directory, **settings) as florin:
        # The first reading of the PSP's list asks the PSP, too.
        is_read = "SELECT 1 FROM psp_states WHERE events_read_until > now() - interval '1 minute'"
        await eventually(lambda: florin.rows(is_read))
        allowed = await charge(florin, metadata={"cart": "7"})
        assert (allowed.status_code, allowed.json()["risk"]) == (201, "allowed")
        ((token, question),) = told["asked"]
        assert token == b"Bearer fraud-secret"
        assert (question["amount"], question["is_charge"], question["metadata"]) == (1_990, True, {"cart": "7"})

        told["verdict"] = "review"
        assert (await charge(florin)).json()["risk"] == "review"
        assert (await florin.create())["risk"] == "review"

        told["verdict"] = "deny"
        before = (await florin.control())["requests"]
        denied = await florin.post(order(confirm=True, token="tok_paid"), key="k")
        again = await florin.post(order(confirm=True, token="tok_paid"), key="k")
        assert (again.status_code, again.json()["payment"]) == (402, denied.json()["payment"])
        assert (denied.status_code, denied.json()["decline_code"]) == (402, "fraud_denied")
        payment = denied.json()["payment"]
        assert (payment["status"], payment["risk"]) == ("CANCELED", "denied")
        assert (await florin.control())["requests"] == before
        assert 'florin_fraud_checks_total{verdict="denied"} 1.0' in metrics(florin)
        await florin.require_promises()


@pytest.mark.parametrize("verdict", ["hang", "fail", "perhaps"])
async def test_without_a_verdict_small_payments_pass_and_larger_ones_wait(
    database_url: str, directory: Path, verdict: str
) -> None:
    settings: dict[str, Any] = {}
    async with fraud_check(settings) as told, open_florin(database_url, directory, **settings) as florin:
        told["verdict"] = verdict
        await florin.connection.execute(
            """
            INSERT INTO merchant_currencies (merchant_id, currency, fallback_limit_minor)
            SELECT merchant_id, 'EUR', 1990 FROM merchants
            """
        )
        small = await charge(florin)
        assert (small.status_code, small.json()["risk"]) == (201, "unchecked")
        large = await charge(florin, amount=1_991)
        assert (large.status_code, large.json()["code"]) == (503, "fraud_check_unavailable")
        assert large.json()["payment"]["status"] == "CANCELED"
        page = await florin.post(order(amount=1_991), headers={"prefer": "respond-async"})
        assert (page.status_code, page.json()["status"]) == (202, "PENDING")

        told["verdict"] = "allow"

        async def opened() -> bool:
            await florin.connection.execute("UPDATE payment_requests SET due_at = now() WHERE due_at > now() + interval '30 s'")
            return (await florin.row(page.json()["id"]))["payment_url"] is not None

        await eventually(opened)
        assert (await florin.row(page.json()["id"]))["risk"] == "allowed"
        await florin.require_promises()


async def test_routes_are_replaced_as_a_whole(florin: Florin) -> None:
    merchant_id, account_id = MerchantId(florin.demo.merchant_id), PspAccountId(florin.demo.psp_account_id)
    act = Act(id=uuid7(), merchant_id=merchant_id, actor="Ada", action="psp.route", detail="", at=utc_now())
    rules = [Route(account_id, "EUR", None, 500), Route(account_id)]
    assert await set_routes(florin.connection, merchant_id, rules, act)
    merchant = await find_merchant(florin.connection, merchant_id)
    assert merchant is not None
    assert list(merchant.routes) == rules
    assert not await set_routes(florin.connection, MerchantId(uuid4()), [], act)


# Many verifications


async def test_many_payments_are_asked_about_at_once_and_each_decline_once_more(florin: Florin) -> None:
    ids = [(await florin.create(order_id=f"order-{number}"))["id"] for number in range(30)]
    await florin.control(webhooks="lose")
    for number, payment_id in enumerate(ids):
        card = ("4242424242424242", "4000000000000069", "4000000000000002")[number % 3]
        await florin.http.post((await florin.row(payment_id))["payment_url"], data={"card": card})
    payments = await stored_payments(florin, ids)
    await florin.control(count="anew", latency={"seconds": 0.5})
    done = list[Verified]()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[Verified](0)
        nursery.start_soon(partial(verify_all, florin.payments, iter(payments), send, source=Source.RECHECK))
        nursery.start_soon(collect, receive, done)
    assert trio.current_time() - began < 2.5
    ends = sorted(one.payment.status for one in done)
    assert ends == sorted([Status.SUCCEEDED, Status.DECLINED, Status.PENDING] * 10)
    assert all(one.payment.did_check_again for one in done if one.payment.status is Status.DECLINED)
    assert (await florin.control(latency=None))["requests"] == 40


async def test_what_was_verified_before_the_deadline_stays(florin: Florin) -> None:
    ids = [(await florin.create(order_id=f"order-{number}"))["id"] for number in range(6)]
    await florin.control(webhooks="lose")
    for payment_id in ids:
        await florin.http.post((await florin.row(payment_id))["payment_url"], data={"card": "4242424242424242"})
    payments = await stored_payments(florin, ids)
    await florin.control(latency={"seconds": 0.4})
    done = list[Verified]()
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[Verified](0)
        ask = partial(verify_all, florin.payments, payments, send, source=Source.RECHECK, concurrency=2)
        nursery.start_soon(partial(ask, seconds=1.0))
        nursery.start_soon(collect, receive, done)
    await florin.control(latency=None)
    assert [one.payment.status for one in done] == [Status.SUCCEEDED] * 4
    stored = await florin.rows("SELECT 1 FROM payment_requests WHERE status = 'SUCCEEDED'")
    assert len(stored) == 4
