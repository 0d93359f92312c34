"""Many payments fetched at once."""

from functools import partial

import trio
import trio.testing

from core.evidence import Source
from core.payment import Status
from server.flows.payments.verify import Verified, verify_all
from tests.support.florin import Florin
from tests.support.psps import collect, stored_payments


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


async def test_results_before_the_deadline_are_kept(florin: Florin) -> None:
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
