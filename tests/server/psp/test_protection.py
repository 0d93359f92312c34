"""A PSP that fails, is slow or has no room affects only payments that need it, and payments go elsewhere if that is safe."""

import time
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing

from core.breaker import CALLS_MIN, BreakerState
from core.evidence import Source
from core.ids import PSP_ACCOUNT, MerchantId, PspAccountId, encode_id
from core.money import Money
from server.clock import utc_now
from server.db.merchants.audit import Act
from server.db.merchants.merchants import find_merchant
from server.db.psps.accounts import Route, set_routes
from server.flows.payments import submit as open_flow
from server.flows.payments.verify import Verified, verify_all
from server.uuid7 import uuid7
from tests.support.florin import Florin, eventually, open_florin, order
from tests.support.payments import metrics
from tests.support.psps import (
    account_of,
    another_worker,
    collect,
    is_closed,
    is_full,
    is_open,
    post_charge,
    second_psp,
    share_tokens,
    stored_payments,
)


async def test_rules_say_where_payments_go(florin: Florin, directory: Path) -> None:
    async with second_psp(florin, directory) as (other, _):
        euros = (await post_charge(florin)).json()
        dollars = (await post_charge(florin, currency="USD")).json()
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
        await share_tokens(florin, other)
        sync = await post_charge(florin)
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
        response = await post_charge(florin)
        assert (response.status_code, response.json()["code"]) == (504, "psp_timeout"), response.text
        assert await account_of(florin, response.json()["payment"]["id"]) == other
        assert len(await florin.rows("SELECT 1 FROM psp_operations")) == 1


async def test_a_retry_that_takes_a_payment_up_keeps_the_first_request_from_another_psp(
    florin: Florin, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request pauses between its failure at one PSP and going to the next, for any length of time."""
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
            await share_tokens(florin, other)
            await florin.http.post(f"{url}/control", json={"create": "drop"})
            for number in range(CALLS_MIN):
                await post_charge(florin, order_id=f"order-{number}")
            first = await florin.payments.psps.of(other)
            assert first.guard.state is BreakerState.OPEN
            assert f'florin_psp_breaker_state{{account="{encode_id(PSP_ACCOUNT, other)}",psp="sandbox"}} 2.0' in metrics(florin)

            response = await post_charge(florin, order_id="after")
            assert response.status_code == 201, response.text
            assert await account_of(florin, response.json()["id"]) == florin.demo.psp_account_id

            second = await other_worker.psps.of(other)
            await eventually(lambda: is_open(second.guard))
            await florin.http.post(f"{url}/control", json={"create": "answer"})
            await florin.connection.execute("UPDATE psp_states SET open_until = now()")
            for guard in (first.guard, second.guard):
                guard.breaker.open(until=trio.current_time())
            back = await post_charge(florin, order_id="back")
            assert await account_of(florin, back.json()["id"]) == other
            await eventually(lambda: is_closed(second.guard))
        assert 'breaker_state{account="' + encode_id(PSP_ACCOUNT, other) + '",psp="sandbox"} 0.0' in metrics(florin)


async def test_without_a_healthy_psp_only_pages_that_can_wait_are_accepted(florin: Florin) -> None:
    (adapter,) = florin.payments.psps.adapters
    done = await post_charge(florin, order_id="before")
    adapter.guard.breaker.open(until=trio.current_time() + 3)
    adapter.guard.news = BreakerState.OPEN

    refused = await post_charge(florin)
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "psp_unavailable", "3")
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
    payment = (await post_charge(florin, capture="manual")).json()
    await florin.connection.execute("UPDATE psp_accounts SET enabled = false")
    await florin.payments.psps.reload()
    refused = await post_charge(florin)
    assert (refused.status_code, refused.json()["code"]) == (503, "psp_unavailable")
    url = f"{florin.api_url}/v1/payments/{payment['id']}/capture"
    captured = await florin.http.post(url, json={}, headers={**florin.headers, "idempotency-key": "k"})
    assert (captured.status_code, captured.json()["status"]) == (200, "SUCCEEDED")


async def test_a_slow_psp_does_not_delay_another_ones_callers(database_url: str, directory: Path) -> None:
    async with open_florin(database_url, directory, psp_seconds=2.0) as florin, second_psp(florin, directory) as (other, url):
        await florin.connection.execute("UPDATE psp_accounts SET concurrency_max = 4 WHERE id = $1", (other,))
        await florin.payments.psps.reload()
        await florin.http.post(f"{url}/control", json={"create": "hang_before"})
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(partial(post_charge, florin, order_id=f"slow-{number}"))
            slow = await florin.payments.psps.of(other)
            await eventually(lambda: is_full(slow.guard))
            began = time.monotonic()
            fast = await post_charge(florin, currency="USD")
            assert fast.status_code == 201
            assert time.monotonic() - began < 0.5
            nursery.cancel_scope.cancel()
        await florin.http.post(f"{url}/control", json={"create": "answer"})


@pytest.mark.slow
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


async def test_routes_are_replaced_as_a_whole(florin: Florin) -> None:
    merchant_id, account_id = MerchantId(florin.demo.merchant_id), PspAccountId(florin.demo.psp_account_id)
    act = Act(id=uuid7(), merchant_id=merchant_id, actor="Ada", action="psp.route", detail="", at=utc_now())
    rules = [Route(account_id, "EUR", None, 500), Route(account_id)]
    assert await set_routes(florin.connection, merchant_id, rules, act)
    merchant = await find_merchant(florin.connection, merchant_id)
    assert merchant is not None
    assert list(merchant.routes) == rules
    assert not await set_routes(florin.connection, MerchantId(uuid4()), [], act)
