"""Execution of batches: by several workers, at the PSP's pace, against their deadline."""

from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from server.clock import utc_now
from tests.support.batches import another_worker, charged_at_the_psp, charges, post, read, statuses, until_ended
from tests.support.florin import Florin, eventually, open_florin
from tests.support.payments import move_psp


async def test_another_worker_continues_a_batch(database_url: str, directory: Path) -> None:
    async with open_florin(database_url, directory, psp_seconds=1.0, drain_seconds=0.1) as florin:
        await florin.control(latency={"seconds": 0.5}, webhooks="lose")
        batch_id = (await post(florin, charges(30), concurrency=5, prefer="respond-async", deadline_seconds=60)).json()["id"]

        async def begun() -> bool:
            return bool((await read(florin, batch_id))["outcomes"]["SUCCEEDED"])

        await eventually(begun)
        before = await read(florin, batch_id)
    async with open_florin(database_url, directory, psp_seconds=1.0) as florin:
        batch = await until_ended(florin, batch_id)
        assert (batch["status"], batch["deadline_at"]) == ("COMPLETED", before["deadline_at"])
        done, accepted = batch["outcomes"], await florin.rows("SELECT 1 FROM payment_requests")
        # The first sandbox lost its memory: it does not know what it had in hand, and nobody else charges it.
        assert done["SUCCEEDED"] + done["FAILED"] == 30
        assert done["FAILED"] <= 5
        assert len(accepted) <= 35
        await florin.require_promises()


@pytest.mark.slow
async def test_a_batch_in_two_hands_is_one_workers(florin: Florin, directory: Path) -> None:
    await florin.control(latency={"seconds": 0.3}, webhooks="lose")
    async with another_worker(florin, directory):
        batch_id = (await post(florin, charges(20), concurrency=4, prefer="respond-async")).json()["id"]
        await eventually(lambda: florin.rows("SELECT 1 FROM batch_items"))
        await florin.connection.execute("UPDATE batches SET lease_until = now()")  # as after a pause of its worker
        batch = await until_ended(florin, batch_id)
    assert (batch["status"], batch["outcomes"]["SUCCEEDED"]) == ("COMPLETED", 20)
    assert await charged_at_the_psp(florin) == 20
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 20


async def test_the_psp_is_never_asked_faster_than_agreed(florin: Florin) -> None:
    await florin.connection.execute("UPDATE psp_accounts SET requests_per_second_max = 40, concurrency_max = 5")
    await florin.payments.psps.reload()
    await trio.sleep(1.1)  # what was counted before is over a second ago
    await florin.control(count="anew", requests_per_second_max=40, latency={"seconds": 0.05})
    response = await post(florin, charges(100))
    counted = await florin.control(requests_per_second_max=None)
    assert statuses(response.json()) == ["SUCCEEDED"] * 100
    assert counted["floods"] == 0
    assert counted["requests_per_second_peak"] <= 40
    assert len(await florin.rows("SELECT 1 FROM payment_requests")) == 100, "nothing was opened that had to be given up"


async def test_an_item_waits_for_a_psp_that_is_away(florin: Florin) -> None:
    async with trio.open_nursery() as nursery:
        await move_psp(florin, "http://127.0.0.1:9")  # nobody listens there
        nursery.start_soon(_come_back, florin)
        response = await post(florin, charges(5), concurrency=1)
    assert statuses(response.json()) == ["SUCCEEDED"] * 5
    assert await charged_at_the_psp(florin) == 5
    given_up = await florin.rows("SELECT 1 FROM payment_requests WHERE decline_code = 'psp_unreachable'")
    assert given_up, "a payment that the PSP never received is over, and its item has opened another one"


async def _come_back(florin: Florin) -> None:
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests WHERE decline_code = 'psp_unreachable'"))
    await move_psp(florin, florin.psp_url)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_200_items_one_at_a_time_run_into_their_deadline(
    database_url: str, directory: Path, mock_clock: trio.testing.MockClock
) -> None:
    """The PSP takes two seconds for each, and five minutes are enough for 150 of them."""
    start, began = utc_now(), 0.0
    async with open_florin(
        database_url,
        directory,
        now=lambda: start + timedelta(seconds=trio.current_time() - began),
        psp_seconds=10.0,
        sweep_seconds=300.0,
    ) as florin:
        florin.http.timeout = None
        await florin.control(latency={"seconds": 2.0}, webhooks="lose")
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_let_time_pass, mock_clock)
            response = await post(florin, charges(200), concurrency=1)
            nursery.cancel_scope.cancel()
        took_seconds, mock_clock.rate = trio.current_time() - began, 1.0  # whatever ends now does so in real time
        assert response.status_code == 408, response.text
        assert 300 <= took_seconds < 303
        problem = response.json()
        found = statuses(problem)
        done, unknown = found.count("SUCCEEDED"), found.count("UNKNOWN")
        # 150 at most; a few less if the machine was so slow that a second passed while something was going on
        assert 100 <= done <= 150, (done, unknown)
        assert unknown <= 1
        assert found == ["SUCCEEDED"] * done + ["UNKNOWN"] * unknown + ["NOT_STARTED"] * (200 - done - unknown)
        assert len(await florin.rows("SELECT 1 FROM payment_requests")) == done + unknown
        assert await charged_at_the_psp(florin) in (done, done + unknown)


async def _let_time_pass(clock: trio.testing.MockClock) -> None:
    """Advance by a second whenever nothing has happened for a moment of real time."""
    while True:
        await trio.testing.wait_all_tasks_blocked(0.05)  # longer than PostgreSQL is likely to take for anything
        clock.jump(1.0)


async def test_a_batch_that_cannot_be_read_ends_with_its_deadline(florin: Florin) -> None:
    await florin.control(latency={"seconds": 30})
    batch_id = (await post(florin, charges(3), concurrency=1, prefer="respond-async", deadline_seconds=60)).json()["id"]
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests"))
    await florin.connection.execute(
        "UPDATE batches SET sealed_items = 'x', lease_token = NULL, lease_until = now(), deadline_at = now() - interval '1 s'"
    )
    batch = await until_ended(florin, batch_id)
    assert batch["status"] == "TIMED_OUT"
    assert (batch["outcomes"]["UNKNOWN"], batch["outcomes"]["NOT_STARTED"]) == (1, 2), "what was begun is told by its key"


async def test_items_begun_by_another_worker_are_never_not_started(florin: Florin) -> None:
    """The lease is taken away in the middle, and found again only after the deadline."""
    await florin.control(latency={"seconds": 0.7}, webhooks="lose")
    items = charges(10)
    batch_id = (await post(florin, items, concurrency=5, prefer="respond-async", deadline_seconds=2)).json()["id"]
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests OFFSET 4"))
    await florin.connection.execute("UPDATE batches SET lease_token = gen_random_uuid(), lease_until = now() + interval '3 s'")
    batch = await until_ended(florin, batch_id)
    assert batch["status"] == "TIMED_OUT"
    begun = len(await florin.rows("SELECT 1 FROM payment_requests"))
    assert batch["outcomes"]["NOT_STARTED"] == 10 - begun
    assert batch["outcomes"]["UNKNOWN"] + batch["outcomes"]["SUCCEEDED"] == begun >= 5


async def test_a_stopped_merchant_is_stopped_in_the_middle_of_a_batch(florin: Florin) -> None:
    await florin.control(latency={"seconds": 0.3})
    batch_id = (await post(florin, charges(30), concurrency=2, prefer="respond-async")).json()["id"]
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests"))
    await florin.connection.execute("UPDATE merchants SET accepts_payments = false")
    batch = await until_ended(florin, batch_id)
    assert batch["outcomes"]["FAILED"] > 10
    failed = await florin.rows("SELECT DISTINCT code FROM batch_items WHERE status = 'FAILED'")
    assert failed == [{"code": "payments_stopped"}]


async def test_items_wait_while_no_account_may_take_payments(florin: Florin) -> None:
    await florin.connection.execute("UPDATE psp_accounts SET enabled = false")
    await florin.payments.psps.reload()
    late = await post(florin, charges(3), deadline_seconds=1)
    assert (late.status_code, statuses(late.json())) == (408, ["NOT_STARTED"] * 3)
    assert await florin.rows("SELECT 1 FROM payment_requests") == []


async def test_a_stop_reaches_items_that_wait_for_their_psp(florin: Florin) -> None:
    await move_psp(florin, "http://127.0.0.1:9")
    batch_id = (await post(florin, charges(5), prefer="respond-async", deadline_seconds=60)).json()["id"]
    await eventually(lambda: florin.rows("SELECT 1 FROM payment_requests WHERE status = 'CANCELED'"))
    await florin.connection.execute("UPDATE merchants SET accepts_payments = false")
    began = trio.current_time()
    await post(florin, b"", path=f"/{batch_id}/stop")
    batch = await until_ended(florin, batch_id)
    assert trio.current_time() - began < 10
    await move_psp(florin, florin.psp_url)
    assert batch["status"] in ("STOPPED", "COMPLETED")
    assert batch["outcomes"]["SUCCEEDED"] == 0
    assert await charged_at_the_psp(florin) == 0
