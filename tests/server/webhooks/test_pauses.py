"""Endpoints that are paused or disabled: what happens meanwhile is kept, and sent in order or skipped."""

from typing import Any

import pytest

from server.db.webhooks.delivery_log import complete_kept
from server.flows.webhooks import endpoints
from tests.support.florin import Florin
from tests.support.payments import charge
from tests.support.receiver import receiving
from tests.support.webhooks import add, call, until_delivered


async def change(florin: Florin, endpoint: dict[str, Any], **fields: Any) -> dict[str, Any]:
    reply = await call(florin, "PATCH", f"webhook-endpoints/{endpoint['id']}", fields)
    assert reply.status_code == 200, reply.text
    changed: dict[str, Any] = reply.json()
    return changed


@pytest.mark.parametrize("mode", ["ordered", "parallel"])
async def test_what_happens_during_a_pause_is_sent_in_order_afterwards(florin: Florin, mode: str) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver, mode=mode)
        await charge(florin)
        await receiver.until(1)
        await until_delivered(florin)
        paused = await change(florin, endpoint, paused=True)
        assert [paused[name] for name in ("enabled", "disabled_reason", "kept_from_seq")] == [False, "paused", 2]
        for number in range(3):
            await charge(florin, order_id=f"order-{number}")
        assert receiver.seqs == [1]
        resumed = await change(florin, endpoint, paused=False)
        assert [resumed[name] for name in ("enabled", "disabled_reason", "kept_from_seq")] == [True, None, None]
        await receiver.until(4)
        await until_delivered(florin)
        assert (receiver.seqs if mode == "ordered" else sorted(receiver.seqs)) == [1, 2, 3, 4]
        await florin.require_promises()


@pytest.mark.parametrize(
    ("stop", "go", "seqs"),
    [
        ({"paused": True}, {"paused": False, "missed": "skip"}, [1, 3]),
        ({"enabled": False}, {"enabled": True}, [1, 3]),
        ({"enabled": False}, {"enabled": True, "missed": "send"}, [1, 2, 3]),
    ],
)
async def test_the_merchant_says_what_becomes_of_missed_events(
    florin: Florin, stop: dict[str, Any], go: dict[str, Any], seqs: list[int]
) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver, mode="ordered")
        await charge(florin)
        await receiver.until(1)
        await until_delivered(florin)
        await change(florin, endpoint, **stop)
        await charge(florin, order_id="missed")
        await change(florin, endpoint, **go)
        await charge(florin, order_id="after")
        await receiver.until(len(seqs))
        await until_delivered(florin)
        assert receiver.seqs == seqs


async def test_a_delivery_that_was_waiting_when_the_pause_began_is_sent_after_it(florin: Florin) -> None:
    async with receiving() as receiver:
        receiver.answer = lambda _: (500, [], b"")
        endpoint = await add(florin, receiver)
        await charge(florin)
        await receiver.until(1)
        assert (await change(florin, endpoint, paused=True))["kept_from_seq"] == 1
        receiver.answer = lambda _: (204, [], b"")
        await florin.connection.execute("UPDATE deliveries SET due_at = now() WHERE due_at IS NOT NULL")
        await change(florin, endpoint, paused=False)
        await receiver.until(2)
        await until_delivered(florin)
        assert (await florin.rows("SELECT state FROM deliveries"))[0]["state"] == "DELIVERED"


async def test_an_event_that_was_being_written_when_the_pause_ended_is_sent(florin: Florin) -> None:
    """Its statement began while the endpoint was paused, and was committed after it was resumed."""
    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        await change(florin, endpoint, paused=True)
        await charge(florin)
        await change(florin, endpoint, paused=False)
        await receiver.until(1)
        await until_delivered(florin)
        await florin.connection.execute("DELETE FROM deliveries")  # as if it had not been seen
        assert await complete_kept(florin.connection) == 0, "it is too early to tell"
        await florin.connection.execute("UPDATE webhook_endpoints SET updated_at = updated_at - interval '1 minute'")
        assert await complete_kept(florin.connection) == 1
        await receiver.until(2)
        await until_delivered(florin)
        assert await complete_kept(florin.connection) == 0
        await florin.connection.execute("UPDATE webhook_endpoints SET updated_at = now()")


async def test_an_endpoint_that_was_disabled_before_pauses_existed_keeps_from_now_on(florin: Florin) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        await change(florin, endpoint, enabled=False)
        await florin.connection.execute("UPDATE webhook_endpoints SET kept_from_seq = NULL")
        assert (await change(florin, endpoint, paused=True))["kept_from_seq"] == 1


async def test_what_was_dropped_on_purpose_is_not_sent_again(florin: Florin) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        await change(florin, endpoint, paused=True)
        await charge(florin)
        await florin.connection.execute(
            """
            INSERT INTO deliveries (merchant_id, endpoint_id, event_seq, state, attempts, created_at, updated_at, last_error)
            SELECT merchant_id, id, 1, 'DROPPED', 3, now(), now(), 'answered 500' FROM webhook_endpoints WHERE url = $1
            """,
            (receiver.url,),
        )
        await change(florin, endpoint, paused=False)
        await charge(florin, order_id="after")
        await receiver.until(1)
        await until_delivered(florin)
        assert receiver.seqs == [2]


async def test_contradictory_wishes_and_too_much_are_refused(florin: Florin, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        path = f"webhook-endpoints/{endpoint['id']}"
        for wrong in ({"paused": True, "enabled": True}, {"missed": "send"}, {"paused": True, "missed": "skip"}):
            assert (await call(florin, "PATCH", path, wrong)).status_code == 422, wrong
        await change(florin, endpoint, paused=True)
        monkeypatch.setattr(endpoints, "KEPT_MAX", 1)
        for number in range(2):
            await charge(florin, order_id=f"order-{number}")
        refused = await call(florin, "PATCH", path, {"paused": False})
        assert (refused.status_code, refused.json()["code"]) == (409, "too_many_missed")
        assert not (await call(florin, "GET", path)).json()["enabled"], "nothing was changed"
