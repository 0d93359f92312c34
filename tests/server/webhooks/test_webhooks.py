"""Webhook endpoints as a merchant has them: made, changed, rotated, disabled; delivered to in parallel and in order."""

import json
import subprocess
from typing import Any

import pytest
import standardwebhooks
import trio

from server.concurrency.single_flight_cache import SingleFlightCache
from tests.conftest import HOUSE, program
from tests.support.florin import Florin, eventually, until
from tests.support.payments import charge
from tests.support.receiver import always, receiving
from tests.support.webhooks import add, call


async def stored(florin: Florin, endpoint: dict[str, Any], sql: str) -> dict[str, Any]:
    """A row about an endpoint."""
    found = await florin.rows(sql, endpoint["id"].removeprefix("we_"))
    return found[0]


async def test_an_endpoint_is_made_once_shown_changed_and_deleted(florin: Florin) -> None:
    async with receiving() as receiver:
        body = {"url": receiver.url, "event_types": ["refund.*", "payment.succeeded"], "description": "books"}
        made = await call(florin, "POST", "webhook-endpoints", body, key="k")
        again = await call(florin, "POST", "webhook-endpoints", body, key="k")
        assert made.status_code == 201
        assert made.json()["secret"].startswith("whsec_")
        assert again.json() == made.json()
        assert again.headers["idempotent-replayed"] == "true"
        assert (await call(florin, "POST", "webhook-endpoints", {"url": receiver.url}, key="k")).status_code == 422
        rows = await florin.rows("SELECT reply_body FROM idempotency_keys WHERE key = 'k'")
        assert "whsec_" not in rows[0]["reply_body"]

        path = f"webhook-endpoints/{made.json()['id']}"
        read = (await call(florin, "GET", path)).json()
        assert "secret" not in read
        assert read["event_types"] == ["refund.*", "payment.succeeded"]
        changed = await call(florin, "PATCH", path, {"enabled": False, "event_types": []})
        assert (changed.json()["enabled"], changed.json()["disabled_reason"], changed.json()["event_types"]) == (
            False,
            "merchant",
            [],
        )
        assert changed.json()["description"] == "books"
        assert (await call(florin, "POST", f"{path}/test", {})).status_code == 409
        assert (await call(florin, "PATCH", path, {"enabled": True})).json()["disabled_reason"] is None
        assert len((await call(florin, "GET", "webhook-endpoints")).json()["data"]) == 2
        assert (await call(florin, "DELETE", path)).status_code == 204
        assert (await call(florin, "DELETE", path)).status_code == 404
        assert (await call(florin, "GET", path)).status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://169.254.169.254/",
        "https://[::ffff:169.254.169.254]/",
        "https://0.0.0.0/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://017700000001/",
        "https://10.0.0.1/",
        "https://[64:ff9b::a00:1]/",
        "https://8.8.8.8:22/",
        "http://8.8.8.8/",
        "ftp://127.0.0.1/",
        "https://user:secret@8.8.8.8/",
        "https://does-not-exist.invalid/",
        "https://8.8.8.8/#x",
        "javascript:alert(1)",
        "https://127.0.0.1\\@8.8.8.8/",
        "",
    ],
)
async def test_an_endpoint_leads_to_the_public_internet_or_nowhere(florin: Florin, url: str) -> None:
    refused = await call(florin, "POST", "webhook-endpoints", {"url": url})
    assert refused.status_code == 422, refused.text
    assert refused.json()["path"] == "$.url"
    assert (await call(florin, "POST", "webhook-endpoints", {"url": "https://8.8.8.8/hook?a=b"})).status_code == 201


async def test_what_a_name_means_is_checked_when_it_is_called(florin: Florin) -> None:
    """A name, or a row, that was good when it was registered, and leads elsewhere now."""
    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        await florin.connection.execute("UPDATE webhook_endpoints SET url = 'https://169.254.169.254/' WHERE enabled")
        await charge(florin)

        async def refused() -> Any:
            row = await stored(florin, endpoint, "SELECT min(last_error) AS error FROM deliveries WHERE endpoint_id = $1::uuid")
            return row["error"]

        assert "may not be called" in await eventually(refused)
        assert receiver.got == []
        await florin.connection.execute("UPDATE webhook_endpoints SET url = $1 WHERE enabled", (receiver.url,))


async def test_other_libraries_verify_our_deliveries_before_during_and_after_a_rotation(
    florin: Florin, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("node")
    monkeypatch.setattr(SingleFlightCache, "get", lambda *_, now: None)  # look it up each time
    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        old = endpoint["secret"]
        await charge(florin)
        await receiver.until(1)
        path = f"webhook-endpoints/{endpoint['id']}/rotate-secret"
        rotated = await call(florin, "POST", path, {"overlap_seconds": 3600}, key="r")
        new = rotated.json()["secret"]
        assert new != old
        assert (await call(florin, "POST", path, {"overlap_seconds": 3600}, key="r")).json()["secret"] == new
        await charge(florin)
        await receiver.until(2)
        await florin.connection.execute("UPDATE webhook_endpoints SET old_secret_until = now() - interval '1 second'")
        await charge(florin)
        await receiver.until(3)

    first, second, third = receiver.got
    expected = [
        (first, old, True),
        (first, new, False),
        (second, old, True),
        (second, new, True),
        (third, old, False),
        (third, new, True),
    ]
    assert [len(one.headers["webhook-signature"].split(" ")) for one in receiver.got] == [1, 2, 1]
    for delivered, secret, is_good in expected:
        assert _verified_by_python(delivered.body, delivered.headers, secret) is is_good
    cases = [{"body": one.body.decode(), "headers": one.headers, "secret": secret} for one, secret, _ in expected]
    for package in ("standardwebhooks", "svix"):
        assert _verified_by_node(package, cases) == [is_good for _, _, is_good in expected]


def _verified_by_python(body: bytes, headers: dict[str, str], secret: str) -> bool:
    try:
        standardwebhooks.Webhook(secret).verify(body.decode(), headers)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


_SCRIPT = """
const { Webhook } = require(process.argv[1]); const cases = JSON.parse(require("fs").readFileSync(0, "utf8")); const good = ({
body, headers, secret }) => { try { new Webhook(secret).verify(body, headers); return true } catch { return false } };
console.log(JSON.stringify(cases.map(good)));
"""


def _verified_by_node(package: str, cases: list[dict[str, Any]]) -> list[bool]:
    modules = HOUSE / ".node" / "node_modules"
    if not (modules / package).exists():
        program(f"npm's {package}")
    done = subprocess.run(
        ["node", "-e", _SCRIPT, str(modules / package)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    found: list[bool] = json.loads(done.stdout)
    return found


async def test_a_filter_lets_only_its_types_through(florin: Florin) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver, event_types=["refund.*"])
        await charge(florin)
        test = await call(florin, "POST", f"webhook-endpoints/{endpoint['id']}/test", {})
        assert test.status_code == 202
        got = await receiver.until(1)
        assert [one.event["type"] for one in got] == ["webhook_endpoint.test"]
        assert got[0].event == test.json()
        unknown = await call(florin, "PATCH", f"webhook-endpoints/{endpoint['id']}", {"event_types": ["payment.paid"]})
        assert (unknown.status_code, unknown.json()["code"]) == (422, "invalid_event_type")


async def test_410_ends_an_endpoint_and_its_merchant_is_told(florin: Florin) -> None:
    async with receiving() as receiver, receiving() as other:
        receiver.answer = always(410)
        endpoint = await add(florin, receiver)
        await add(florin, other)
        await charge(florin)
        await until(lambda: "webhook_endpoint.disabled" in [one.event["type"] for one in other.got])
        told = next(one.event for one in other.got if one.event["type"] == "webhook_endpoint.disabled")
        assert told["data"]["id"] == endpoint["id"]
        assert told["data"]["disabled_reason"] == "gone"
        read = (await call(florin, "GET", f"webhook-endpoints/{endpoint['id']}")).json()
        assert (read["enabled"], read["disabled_reason"]) == (False, "gone")
        letters = (await call(florin, "GET", "dead-letters")).json()["data"]
        assert [one["endpoint_id"] for one in letters] == [endpoint["id"]]


async def test_an_endpoint_that_fails_for_five_days_is_disabled(florin: Florin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SingleFlightCache, "get", lambda *_, now: None)  # look it up each time
    async with receiving() as receiver:
        receiver.answer = always(500)
        endpoint = await add(florin, receiver)
        await charge(florin)

        async def is_failing() -> Any:
            return (await call(florin, "GET", f"webhook-endpoints/{endpoint['id']}")).json()["failing_since"]

        assert await eventually(is_failing)
        await florin.connection.execute("UPDATE webhook_endpoints SET failing_since = now() - interval '5 days' WHERE enabled")
        await charge(florin)

        async def is_disabled() -> bool:
            read = (await call(florin, "GET", f"webhook-endpoints/{endpoint['id']}")).json()
            return bool(read["disabled_reason"] == "failing")

        assert await eventually(is_disabled)
        receiver.answer = always(204)
        assert (await call(florin, "PATCH", f"webhook-endpoints/{endpoint['id']}", {"enabled": True})).json()[
            "failing_since"
        ] is None


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


async def test_what_fails_holds_back_what_comes_after_it_and_only_there(florin: Florin) -> None:
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


async def until_delivered(florin: Florin) -> None:
    """Wait until nothing is on its way."""
    await eventually(lambda: florin.rows("SELECT 1 WHERE NOT EXISTS (SELECT FROM deliveries WHERE state = 'PENDING')"))


async def test_the_log_tells_what_was_sent_and_answered_and_no_secret(florin: Florin) -> None:
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
        for secret in ("ada@", "Lovelace", "abcdef123456", "4242", "order-1", endpoint["secret"]):
            assert secret not in text
        assert detail["request"]["headers"]["webhook-id"] == row["event_id"]
        assert detail["request"]["body"]["data"]["amount"] == 1_990
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
