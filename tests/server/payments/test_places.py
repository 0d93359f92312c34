"""Places at PSPs: what cannot be sent in time is refused before it is written, or opened later, and other accounts help out."""

from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import trio

from core.breaker import BreakerState
from core.ids import PSP_ACCOUNT, MerchantId, PspAccountId, encode_id
from core.money import Money
from server.clock import utc_now
from server.concurrency import background
from server.db.merchants.merchants import Merchant
from server.db.psps.accounts import Route
from server.process.demo import load_or_generate
from server.sandbox.intents import account_name
from server.uuid7 import uuid7
from tests.support.florin import Florin, eventually, open_florin, order, until
from tests.support.payments import charge
from tests.support.psps import account_of, post_charge, second_psp, share_tokens

LATER = {"prefer": "respond-async"}


async def limit(florin: Florin, rate: int, account_id: PspAccountId | None = None) -> None:
    """Give an account a rate; None means the demo account."""
    account_id = account_id or PspAccountId(florin.demo.psp_account_id)
    await florin.connection.execute("UPDATE psp_accounts SET requests_per_second_max = $1 WHERE id = $2", (rate, account_id))
    await florin.payments.psps.reload()


async def in_parallel(florin: Florin, *calls: dict[str, Any]) -> list[httpx2.Response]:
    """Send all at once, as `Florin.post` is called."""
    replies: list[httpx2.Response] = []

    async def one(call: dict[str, Any]) -> None:
        replies.append(await florin.post(**call))

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(one, call)
    return replies


def a_charge(number: int) -> dict[str, Any]:
    return {"body": order(order_id=f"order-{number}", confirm=True, token="tok_paid")}


@pytest.mark.slow
async def test_a_burst_past_the_rate_cancels_nothing(database_url: str, directory: Path) -> None:
    async with open_florin(database_url, directory, psp_seconds=10.0) as florin:
        await limit(florin, 5)
        await _burst(florin)


async def _burst(florin: Florin) -> None:
    replies = await in_parallel(florin, *(a_charge(number) for number in range(60)))
    counts = Counter(reply.status_code for reply in replies)
    stored = Counter(row["status"] for row in await florin.rows("SELECT status FROM payment_requests"))
    refused = [reply for reply in replies if reply.status_code == 503]
    later = sorted(int(reply.headers["retry-after"]) for reply in refused)
    print(f"60 charges at --rate 5: {dict(counts)}, stored: {dict(stored)}, Retry-After {later}")
    assert counts.keys() == {201, 503}
    assert counts[201] >= 30
    assert stored == {"SUCCEEDED": counts[201]}, "what is refused is not written"
    assert {reply.json()["code"] for reply in refused} == {"psp_busy"}
    assert 8 <= later[-1] <= 14, "the place of those that could not wait so long"
    await florin.require_promises()


async def test_an_idle_account_with_a_rate_has_room(florin: Florin, directory: Path) -> None:
    """It gets its payments, at its rate; what it has no room for goes to the next account at once."""
    async with second_psp(florin, directory) as (other, _):
        await share_tokens(florin, other)
        await limit(florin, 10, other)
        first = await charge(florin)
        assert await account_of(florin, first["id"]) == other
        replies = await in_parallel(florin, *(a_charge(number) for number in range(10)))
        assert {reply.status_code for reply in replies} == {201}
        accounts = Counter([await account_of(florin, reply.json()["id"]) for reply in replies])
        assert accounts[PspAccountId(florin.demo.psp_account_id)] >= 8
        await trio.sleep(0.5)  # the schedule of the rate is real time
        last = await charge(florin, order_id="last")
        assert await account_of(florin, last["id"]) == other


async def test_a_page_waits_for_a_place_as_long_as_its_client(florin: Florin) -> None:
    await limit(florin, 8)
    replies = await in_parallel(
        florin,
        *({"body": order(order_id=f"w{number}"), "headers": {"prefer": "wait=5"}} for number in range(3)),
        *({"body": order(order_id=f"l{number}"), "headers": LATER} for number in range(5)),
    )
    assert Counter(reply.status_code for reply in replies)[201] >= 3
    assert {reply.status_code for reply in replies} <= {201, 202}
    for reply in replies:
        payment_id = reply.json()["id"]

        async def opened(payment_id: str = payment_id) -> bool:
            await florin.connection.execute("UPDATE payment_requests SET due_at = now() WHERE payment_url IS NULL")
            return (await florin.row(payment_id))["payment_url"] is not None

        await eventually(opened)


async def test_a_page_that_was_accepted_for_later_outlives_a_psp_that_is_down(florin: Florin) -> None:
    account = florin.demo.psp_account_id
    await florin.connection.execute("UPDATE psp_accounts SET base_url = 'http://127.0.0.1:9' WHERE id = $1", (account,))
    await florin.payments.psps.reload()
    page = await florin.post(order(), headers=LATER)
    assert (page.status_code, page.json()["status"]) == (202, "PENDING")
    (adapter,) = florin.payments.psps.adapters
    await until(lambda: adapter.guard.in_flight == 0)
    assert (await florin.row(page.json()["id"]))["status"] == "PENDING"
    await florin.connection.execute("UPDATE psp_accounts SET base_url = $1 WHERE id = $2", (florin.psp_url, account))
    await florin.payments.psps.reload()

    async def opened() -> bool:
        await florin.connection.execute("UPDATE payment_requests SET due_at = now() WHERE payment_url IS NULL")
        return (await florin.row(page.json()["id"]))["payment_url"] is not None

    await eventually(opened)


async def test_more_work_than_can_be_under_way_leaks_no_place(florin: Florin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "TASKS_MAX", 1)
    await florin.control(latency={"seconds": 0.3})
    calls = [{"body": order(order_id=f"p{number}"), "headers": LATER} for number in range(4)]
    charges = [{**a_charge(number), "headers": LATER, "key": f"k{number}"} for number in range(4)]
    replies = await in_parallel(florin, *calls, *charges)
    assert {reply.status_code for reply in replies} <= {202, 503}
    (adapter,) = florin.payments.psps.adapters
    await until(lambda: adapter.guard.in_flight == 0)
    monkeypatch.undo()
    await florin.control(latency={"seconds": 0})
    for number in range(4):
        done = await florin.post(**{**a_charge(number), "headers": {"prefer": "wait=5"}, "key": f"k{number}"})
        assert (done.status_code, done.json()["status"]) == (201, "SUCCEEDED"), done.text
    await florin.require_promises()


async def test_a_token_waits_for_the_account_that_issued_it(florin: Florin, directory: Path) -> None:
    """The first account of the rules is stopped, and another one does not know its tokens."""
    async with second_psp(florin, directory) as (other, _):
        await florin.connection.execute("UPDATE psp_accounts SET enabled = false WHERE id = $1", (other,))
        await florin.payments.psps.reload()
        for fields in ({}, {"psp_account": encode_id(PSP_ACCOUNT, other)}):
            refused = await post_charge(florin, **fields)
            assert (refused.status_code, refused.json()["code"]) == (503, "psp_unavailable"), refused.text
        assert not await florin.rows("SELECT 1 FROM payment_requests")
        await florin.connection.execute(
            "UPDATE psp_accounts SET tokens_of = $1 WHERE id = $2", (other, florin.demo.psp_account_id)
        )
        await florin.payments.psps.reload()
        accepted = await post_charge(florin, psp_account=encode_id(PSP_ACCOUNT, other))
        assert accepted.status_code == 201, accepted.text


async def test_a_probe_that_is_not_sent_is_given_back(florin: Florin) -> None:
    """A payment that finds its order live has claimed the probe, and does not keep the next one from it."""
    (adapter,) = florin.payments.psps.adapters
    await florin.connection.execute("UPDATE merchants SET one_live_payment_per_order = true")
    await florin.connection.execute(
        "INSERT INTO psp_states (psp_account_id, open_until) VALUES ($1, now())"
        " ON CONFLICT (psp_account_id) DO UPDATE SET open_until = now()",
        (florin.demo.psp_account_id,),
    )
    adapter.guard.breaker.open(until=trio.current_time())
    await florin.post(order(order_id="same"), headers=LATER)

    async def probed() -> bool:
        (row,) = await florin.rows("SELECT probe_until IS NULL AS is_free FROM psp_states")
        return bool(row["is_free"])

    await eventually(probed)
    await until(lambda: adapter.guard.state is not BreakerState.OPEN)


@pytest.mark.slow
async def test_a_charge_is_not_sent_when_its_time_is_nearly_over(florin: Florin) -> None:
    """Its absence at the PSP will end it, so nothing may be under way then, however long a retry waits for its place."""
    await florin.control(create="throttle")
    key = uuid4().hex
    busy = await florin.post(order(confirm=True, token="tok_paid"), key=key)
    assert (busy.status_code, busy.json()["code"]) == (503, "psp_busy"), busy.text
    payment_id = busy.json()["payment"]["id"]
    await florin.control(create="answer", count="anew")
    await florin.connection.execute("UPDATE payment_requests SET expires_at = now() + interval '2 seconds'")
    late = await florin.post(order(confirm=True, token="tok_paid"), key=key)
    assert (late.status_code, late.json()["status"]) == (202, "PENDING"), late.text

    await florin.connection.execute("UPDATE payment_requests SET due_at = now(), expires_at = now()")
    is_put_off = partial(florin.rows, "SELECT 1 FROM payment_requests WHERE due_at > created_at + interval '90 seconds'")
    await eventually(is_put_off)
    assert (await florin.row(payment_id))["status"] == "PENDING", "a request could still arrive"
    await florin.connection.execute("UPDATE payment_requests SET created_at = created_at - interval '5 minutes', due_at = now()")
    row = await florin.until_stored(payment_id, "CANCELED")
    assert row["decline_code"] == "psp_unreachable"
    await florin.require_promises()


def test_neighboring_rules_share_their_payments_by_weight() -> None:
    first, second, last = (PspAccountId(uuid7()) for _ in range(3))
    routes = (Route(first, "EUR", weight=70), Route(second, "EUR", weight=30))
    merchant = Merchant(MerchantId(uuid7()), "m", "test", last, utc_now(), routes=routes)
    rng = Random(1)
    drawn = [merchant.accounts_for(Money(1, "EUR"), rng) for _ in range(2_000)]
    assert {tuple(sorted(one)) for one in drawn} == {tuple(sorted((first, second, last)))}
    assert {one[-1] for one in drawn} == {last}
    assert 0.66 < [one[0] for one in drawn].count(first) / 2_000 < 0.74
    assert merchant.accounts_for(Money(1, "USD"), rng) == [last]
    assert merchant.accounts_for(Money(1, "EUR")) == [first, second, last], "a token goes to the first of the rules"


async def test_a_token_that_is_bound_to_an_account_is_charged_there(florin: Florin, directory: Path) -> None:
    async with second_psp(florin, directory) as (other, _):
        demo, other_key = florin.demo, load_or_generate(directory / "other.json").psp_api_key
        bound_here, bound_there = (f"tok_paid_of_{account_name(key)}" for key in (demo.psp_api_key, other_key))
        there = await florin.post(order(confirm=True, token=bound_there))
        assert (there.status_code, await account_of(florin, there.json()["id"])) == (201, other)
        account = encode_id(PSP_ACCOUNT, demo.psp_account_id)
        here = await florin.post(order(confirm=True, token=bound_here, psp_account=account))
        assert (here.status_code, await account_of(florin, here.json()["id"])) == (201, demo.psp_account_id)
        foreign = await florin.post(order(confirm=True, token=bound_here))
        assert (foreign.status_code, foreign.json()["payment"]["status"]) == (422, "CANCELED"), foreign.text


@pytest.mark.parametrize(("fault", "token", "status"), [("throttle", "tok_paid", 503), ("answer", "tok_declined", 402)])
async def test_a_retry_right_after_a_reply_that_was_not_definitive_need_not_wait(
    florin: Florin, fault: str, token: str, status: int
) -> None:
    await florin.control(create=fault)
    codes = set[int]()

    async def twice() -> None:
        body, key = order(order_id=uuid4().hex, confirm=True, token=token), uuid4().hex
        codes.update([(await florin.post(body, key=key)).status_code for _ in range(2)])

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(twice)
    assert codes == {status}


async def test_a_page_that_is_asked_for_later_waits_for_no_place(florin: Florin) -> None:
    await florin.connection.execute("UPDATE psp_accounts SET concurrency_max = 1")
    await florin.payments.psps.reload()
    (adapter,) = florin.payments.psps.adapters
    await florin.control(latency={"seconds": 2.0})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(florin.post, **a_charge(1)))
        await until(lambda: adapter.guard.in_flight == 1)
        with trio.fail_after(1.0):  # the charge holds the only place for longer
            page = await florin.post(order(order_id="page"), headers=LATER)
        assert page.status_code == 202
