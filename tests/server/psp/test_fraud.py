"""The fraud check, before any PSP is asked."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from server.http.asgi import Receive, Scope, Send, read_body, respond
from server.http.server.listener import Listener, bind
from tests.support.florin import eventually, open_florin, order
from tests.support.payments import metrics
from tests.support.psps import post_charge


@asynccontextmanager
async def fraud_check(florin_settings: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """A fraud check on loopback with a configurable verdict; `florin_settings` gets its address."""
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


async def test_the_fraud_check_decides_before_any_psp_is_asked(database_url: str, directory: Path) -> None:
    settings: dict[str, Any] = {}
    async with fraud_check(settings) as told, open_florin(database_url, directory, **settings) as florin:
        # the first reading of the PSP's list asks the PSP, too
        is_read = "SELECT 1 FROM psp_states WHERE events_read_until > now() - interval '1 minute'"
        await eventually(lambda: florin.rows(is_read))
        allowed = await post_charge(florin, metadata={"cart": "7"})
        assert (allowed.status_code, allowed.json()["risk"]) == (201, "allowed")
        ((token, question),) = told["asked"]
        assert token == b"Bearer fraud-secret"
        assert (question["amount"], question["is_charge"], question["metadata"]) == (1_990, True, {"cart": "7"})

        told["verdict"] = "review"
        assert (await post_charge(florin)).json()["risk"] == "review"
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
        small = await post_charge(florin)
        assert (small.status_code, small.json()["risk"]) == (201, "unchecked")
        large = await post_charge(florin, amount=1_991)
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
