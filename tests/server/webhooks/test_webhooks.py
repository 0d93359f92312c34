"""Webhook endpoints of a merchant: created, changed, rotated, disabled; delivered to in parallel and in order."""

import json
import subprocess
from typing import Any

import pytest
import standardwebhooks

from server.concurrency.single_flight_cache import SingleFlightCache
from tests.conftest import ROOT, program
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


async def test_a_names_address_is_checked_when_it_is_called(florin: Florin) -> None:
    """A name, or a row, that was allowed when it was registered, and leads elsewhere now."""
    async with receiving() as receiver:
        endpoint = await add(florin, receiver)
        await florin.connection.execute("UPDATE webhook_endpoints SET url = 'https://169.254.169.254/' WHERE enabled")
        await charge(florin)

        async def refused() -> Any:
            row = await stored(florin, endpoint, "SELECT min(last_error) AS error FROM deliveries WHERE endpoint_id = $1::uuid")
            return row["error"]

        assert "not on the public internet" in await eventually(refused)
        assert receiver.got == []
        await florin.connection.execute("UPDATE webhook_endpoints SET url = $1 WHERE enabled", (receiver.url,))


async def test_other_libraries_verify_our_deliveries_before_during_and_after_a_rotation(
    florin: Florin, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("node")
    monkeypatch.setattr(SingleFlightCache, "get", lambda *_, now: None)  # read it each time
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
    modules = ROOT / ".node" / "node_modules"
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


async def test_410_disables_an_endpoint_and_notifies_its_merchant(florin: Florin) -> None:
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
    monkeypatch.setattr(SingleFlightCache, "get", lambda *_, now: None)  # read it each time
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
