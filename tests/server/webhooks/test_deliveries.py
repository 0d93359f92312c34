"""Deliveries: retried, in order, sent again, logged, limited in rate."""

import json
from typing import Any

import pytest
import trio

from tests.support.florin import Florin, eventually
from tests.support.payments import charge
from tests.support.receiver import always, receiving
from tests.support.webhooks import add, call, until_delivered


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [(429, b"7200", 7_200), (503, b"Fri, 31 Dec 2100 23:59:59 GMT", 86_400), (500, b"7200", 5), (301, b"7200", 5)],
)
async def test_retry_after_is_honoured(florin: Florin, status: int, header: bytes, seconds: int) -> None:
    async with receiving() as receiver:
        receiver.answer = always(status, (b"retry-after", header), (b"location", b"http://127.0.0.1:1/"))
        endpoint = await add(florin, receiver)
        await charge(florin)
        sql = """
            SELECT extract(epoch FROM due_at - updated_at)::float8 AS wait, last_error FROM deliveries
             WHERE endpoint_id = $1::uuid AND last_error IS NOT NULL
        """

        async def failed() -> Any:
            found = await florin.rows(sql, endpoint["id"].removeprefix("we_"))
            return found[0] if found else None

        row = await eventually(failed)
        assert row["wait"] == pytest.approx(seconds, rel=0.21)
        assert ("redirects are not followed" in row["last_error"]) is (status == 301)
        assert len(receiver.got) == 1


async def test_a_failed_event_holds_back_later_ones_of_its_endpoint_only(florin: Florin) -> None:
    async with receiving() as receiver, receiving() as other:
        receiver.answer = lambda event: (500, [], b"") if event["seq"] == 2 and len(receiver.got) < 4 else (200, [], b"")
        endpoint = await add(florin, receiver, mode="ordered")
        await add(florin, other, mode="ordered")
        for number in range(5):
            await charge(florin, order_id=str(number))
        assert [one.event["seq"] for one in await other.until(5)] == [1, 2, 3, 4, 5]
        await receiver.until(2)
        assert receiver.seqs == [1, 2]

        async def skip_the_wait() -> bool:
            await florin.connection.execute("UPDATE webhook_endpoints SET held_until = now() WHERE held_until > now()")
            return len(receiver.got) >= 7

        assert await eventually(skip_the_wait)
        assert receiver.seqs == [1, 2, 2, 2, 3, 4, 5]
        log = (await call(florin, "GET", f"webhook-endpoints/{endpoint['id']}/deliveries/2")).json()["log"]
        assert [one["status"] for one in log] == [500, 500, 200]


async def test_events_are_sent_once_more_alone_and_as_a_range(florin: Florin) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver, mode="ordered")
        path = f"webhook-endpoints/{endpoint['id']}"
        for number in range(3):
            await charge(florin, order_id=str(number))
        await receiver.until(3)
        assert (await call(florin, "POST", f"{path}/deliveries/2/resend", {})).json() == {"deliveries": 1}
        await receiver.until(4)
        await until_delivered(florin)
        assert (await call(florin, "POST", f"{path}/replay", {"from_seq": 2})).json() == {"deliveries": 2}
        await receiver.until(6)
        assert receiver.seqs == [1, 2, 3, 2, 2, 3]
        assert len({one.headers["webhook-id"] for one in receiver.got}) == 3
        assert (await call(florin, "POST", f"{path}/deliveries/9/resend", {})).status_code == 404
        assert (await call(florin, "POST", f"{path}/replay", {"from_seq": 3, "to_seq": 2})).status_code == 422
        await until_delivered(florin)


async def test_the_log_shows_requests_and_replies_without_secrets(florin: Florin) -> None:
    async with receiving() as receiver:
        receiver.answer = always(
            500, body=b'{"error": "user ada@example.com, token=abcdef123456, card 4242 4242 4242 4242"} ' + b"x" * 20_000
        )
        endpoint = await add(florin, receiver)
        await charge(florin, description="for Ada Lovelace", metadata={"email": "ada@example.com"})
        path = f"webhook-endpoints/{endpoint['id']}/deliveries"

        async def failed() -> Any:
            return [one for one in (await call(florin, "GET", path)).json()["data"] if one["last_status"] == 500]

        row = (await eventually(failed))[0]
        assert (row["state"], row["attempts"], row["last_error"]) == ("PENDING", 1, "the endpoint answered 500")
        detail = (await call(florin, "GET", f"{path}/{row['seq']}")).json()
        text = json.dumps(detail)
        for secret in ("ada@", "Lovelace", "abcdef123456", "4242", endpoint["secret"]):
            assert secret not in text
        assert detail["request"]["headers"]["webhook-id"] == row["event_id"]
        assert detail["request"]["body"]["data"]["amount"] == 1_990
        assert detail["request"]["body"]["data"]["order_id"] == "order-1", "the merchant's own"
        assert detail["log"][0]["response"].startswith('{"error": "user [redacted]')
        assert len(detail["log"][0]["response"]) <= 500
        assert (await call(florin, "GET", f"{path}?state=DEAD")).json()["data"] == []


async def test_dead_letters_are_tried_again_or_dropped(florin: Florin) -> None:
    async with receiving() as receiver:
        receiver.answer = always(500)
        endpoint = await add(florin, receiver)
        for number in range(3):
            await charge(florin, order_id=str(number))
        await receiver.until(3)
        await florin.connection.execute("UPDATE deliveries SET attempts = 9, due_at = now() WHERE state = 'PENDING'")

        async def dead() -> Any:
            found = (await call(florin, "GET", f"dead-letters?endpoint_id={endpoint['id']}&limit=2")).json()
            return found if found["has_more"] else None

        page = await eventually(dead)
        following = (await call(florin, "GET", f"dead-letters?cursor={page['next_cursor']}")).json()
        await eventually(lambda: florin.rows("SELECT 1 WHERE (SELECT count(*) FROM deliveries WHERE state = 'DEAD') = 3"))
        assert [one["seq"] for one in page["data"]] == [1, 2]
        assert following["has_more"] is False
        one = {"endpoint_id": endpoint["id"], "seq": 2}
        assert (await call(florin, "POST", "dead-letters/drop", one)).json() == {"deliveries": 1}
        receiver.answer = always(200)
        assert (await call(florin, "POST", "dead-letters/retry", {})).json() == {"deliveries": 2}
        await until_delivered(florin)
        states = await florin.rows("SELECT event_seq, state FROM deliveries ORDER BY event_seq")
        assert [row["state"] for row in states] == ["DELIVERED", "DROPPED", "DELIVERED"]
        acts = await florin.rows("SELECT action FROM audit_log ORDER BY created_at")
        assert [row["action"] for row in acts] == ["dead_letters.drop", "dead_letters.retry"]


async def test_an_endpoint_that_holds_its_callers_costs_the_others_nothing(florin: Florin) -> None:
    async with receiving() as tarpit, receiving() as good:
        tarpit.answer = lambda _: None
        slow = await add(florin, tarpit)
        await add(florin, good)
        for number in range(60):
            await charge(florin, order_id=str(number))
        await good.until(60)
        assert sorted(good.seqs) == list(range(1, 61))
        assert len(tarpit.got) <= 32
        await call(florin, "DELETE", f"webhook-endpoints/{slow['id']}")


async def test_a_rate_is_kept(florin: Florin) -> None:
    async with receiving() as receiver:
        await add(florin, receiver, requests_per_second_max=20)
        began = trio.current_time()
        for number in range(25):
            await charge(florin, order_id=str(number))
        await receiver.until(25)
        assert trio.current_time() - began > 1.0
        await until_delivered(florin)


async def test_a_large_answer_is_read_in_part(florin: Florin) -> None:
    async with receiving() as receiver:
        receiver.answer = always(200, body=b"x" * 3_000_000)
        await add(florin, receiver)
        await charge(florin)
        await until_delivered(florin)
        assert len(receiver.got) == 1


@pytest.mark.slow
async def test_a_backlog_behind_a_rate_is_sent_at_that_rate_and_counts_no_attempt_unsent(florin: Florin) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver, requests_per_second_max=8)
        await florin.connection.execute("UPDATE webhook_endpoints SET enabled = false WHERE enabled")
        for number in range(60):
            await charge(florin, order_id=str(number))
        assert (await call(florin, "PATCH", f"webhook-endpoints/{endpoint['id']}", {"enabled": True})).status_code == 200
        sent = await call(florin, "POST", f"webhook-endpoints/{endpoint['id']}/replay", {"from_seq": 1})
        assert sent.json() == {"deliveries": 60}
        await receiver.until(60)
        await until_delivered(florin)
        rows = await florin.rows("SELECT max(attempts) AS most FROM deliveries")
        assert (rows[0]["most"], sorted(receiver.seqs)) == (1, list(range(1, 61)))


async def test_a_retry_that_succeeds_ends_a_failure_that_another_worker_noted(florin: Florin) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        await charge(florin)
        await receiver.until(1)
        await until_delivered(florin)
        await florin.connection.execute("UPDATE webhook_endpoints SET failing_since = now() - interval '4 days'")
        await florin.connection.execute("UPDATE deliveries SET state = 'PENDING', attempts = 1, due_at = now()")
        await receiver.until(2)

        async def is_sound() -> bool:
            rows = await florin.rows("SELECT failing_since FROM webhook_endpoints WHERE id = $1::uuid", endpoint["id"][3:])
            return rows[0]["failing_since"] is None

        assert await eventually(is_sound)
