"""The person on duty: a payment lost at the PSP, found, resolved by two, contradicted a day later, and all of it on record."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psycopg
import pytest

from core.ids import PAYMENT, decode_id
from core.signing import sign_timestamped
from tests.support.command import Up, log_in, owner_url, run, up

pytestmark = pytest.mark.slow


@pytest.fixture
def running(directory: Path) -> Iterator[Up]:
    with up("--data-dir", str(directory), "--workers", "1") as instance:
        yield instance


def lose(running: Up, directory: Path, order_id: str) -> str:
    """A charge that the PSP has carried out and whose answer is lost, until Florin has given up asking. Returns the payment."""
    control = f"{running.value('sandbox PSP')}/control"
    httpx2.post(control, json={"create": "reset_after", "fetch": "drop"}).raise_for_status()
    headers = {"authorization": f"Bearer {running.value('API key')}", "idempotency-key": order_id}
    body = {"amount": 1_990, "currency": "EUR", "order_id": order_id, "confirm": True, "token": "tok_paid"}
    reply = httpx2.post(f"{running.value('API')}/v1/payments", json=body, headers=headers, timeout=30).json()
    payment: str = reply["payment"]["id"]
    with psycopg.connect(owner_url(directory), autocommit=True) as connection:
        found: list[tuple[int]] = []
        while not found:  # after ten looks in vain, which take five days
            connection.execute(
                "UPDATE payment_requests SET checks = 9, due_at = now(), created_at = created_at - interval '1 hour'"
                " WHERE id = %s AND due_at > now()",
                (decode_id(PAYMENT, payment),),
            )
            found = connection.execute("SELECT 1 FROM findings").fetchall()
            time.sleep(0.2)
    return payment


def test_a_lost_payment_from_its_finding_to_its_contradiction(running: Up, directory: Path) -> None:
    data = ("--data-dir", str(directory))
    payment = lose(running, directory, "lost")
    listed = run("finding", "list", *data)
    assert "outcome_unknown" in listed
    assert "19.90 EUR" in listed
    finding = re.findall(r"fnd_\w{32}", listed)[0]
    shown = run("finding", "show", finding, *data)
    assert f"florin payment resolve {payment} --captured --reference … --reason …" in shown
    assert "nobody is logged in here" in run("finding", "take", finding, *data, code=1)
    log_in(*data)
    log_in(*data, name="grace")
    as_ada, as_grace = ("--operator", "ada", *data), ("--operator", "grace", *data)
    assert "TAKEN by ada" in run("finding", "take", finding, *as_ada)
    known = ("--captured", "--reference", "ch_7", "--reason", "paid, says the dashboard")
    assert "give --reference" in run("payment", "resolve", payment, "--captured", "--reason", "x", *as_ada, code=1)
    asked = run("payment", "resolve", payment, *known, *as_ada)
    request = re.findall(r"opr_\w{32}", asked)[0]
    assert "another operator has to approve it" in run("request", "approve", request, *as_ada, code=1)
    assert f"done: {payment} is SUCCEEDED" in run("request", "approve", request, *as_grace)
    assert "FIXED by ada and grace" in run("finding", "show", finding, *data)
    assert "There are no open findings" in run("finding", "list", *data)
    assert "own word" not in run("explain", payment, *data)
    contradict(running, directory, payment)
    timeline = [json.loads(line) for line in run("explain", payment, "--json", *data).splitlines()]
    told = "\n".join(f"{one['where']}: {one['what']}" for one in timeline)
    for part in (
        "operator: ada: payment.resolve opr_",
        "operator: grace: request.approve opr_",
        "payment: UNKNOWN → SUCCEEDED: captured (operator), ch_7",
        "ledger: operator_charge: +1990 EUR merchant_available",
        "payment: SUCCEEDED → CANCELED: canceled",
        "ledger: operator_charge_reversal: -1990 EUR merchant_available",
        "finding: operator_contradicted fnd_",
    ):
        assert part in told, told
    assert "operator_contradicted" in run("finding", "list", *data)
    audit = run("audit", "--payment", payment, *data)
    assert [line.split()[2:4] for line in audit.splitlines()[1:]] == [
        ["ada", "finding.take"],
        ["ada", "payment.resolve"],
        ["grace", "request.approve"],
    ]
    assert "all promises are kept" in run("doctor", *data)
    assert "all promises are kept" in run("doctor", "--since", "24h", *data)
    document = [json.loads(line) for line in run("doctor", "--json", *data).splitlines()]
    assert all(one["kept"] for one in document if "kept" in one)
    assert any("findings are open" in one.get("notice", "") for one in document)


def contradict(running: Up, directory: Path, payment: str) -> None:
    """Let the PSP say that it has canceled the charge, as it finds out a day later."""
    with psycopg.connect(owner_url(directory), autocommit=True) as connection:
        row = connection.execute(
            "SELECT merchant_id, psp_account_id, operation_id FROM payment_requests WHERE id = %s", (decode_id(PAYMENT, payment),)
        ).fetchone()
    assert row is not None
    demo = json.loads((directory / "demo.json").read_text())
    event = {
        "id": "sbe_late",
        "type": "intent.canceled",
        "data": {
            "id": "int_late",
            "status": "canceled",
            "amount_minor": 1_990,
            "captured_minor": 0,
            "currency": "EUR",
            "payment_url": "",
            "merchant_id": str(row[0]),
            "payment_id": str(decode_id(PAYMENT, payment)),
            "operation_id": str(row[2]),
        },
    }
    body = json.dumps(event).encode()
    signature = sign_timestamped(demo["psp_webhook_secret"], timestamp=int(time.time()), body=body)
    url = f"{running.value('API')}/v1/psp/sandbox/acct_{row[1].hex}/webhooks"
    httpx2.post(url, content=body, headers={"sandbox-signature": signature}).raise_for_status()


def test_roles_programs_and_restricted_keys(running: Up, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ("--data-dir", str(directory))
    log_in(*data)
    merchant = re.findall(r"mer_\w{32}", run("merchant", "list", *data))[0]
    key = run("operator", "add", "ci", "--service", "--role", "support", *data)
    assert "cannot be finance" in run("operator", "add", "ci2", "--service", "--role", "finance", *data, code=1)
    scoped = run("merchant", "key", "add", merchant, "--scopes", "read", "--name", "reports", *data)
    secret = re.findall(r"fl_test_\w+", scoped)[0]
    headers = {"authorization": f"Bearer {secret}", "idempotency-key": "k"}
    refused = httpx2.post(f"{running.value('API')}/v1/payments", json={}, headers=headers)
    assert (refused.status_code, refused.json()["detail"]) == (403, "this API key lacks the scope payments:write")
    assert "did you mean refunds:write" in run("merchant", "key", "add", merchant, "--scopes", "refund:write", *data, code=1)
    key_id = next(line.split()[0] for line in run("merchant", "key", "list", merchant, *data).splitlines() if "reports" in line)
    assert "fl_test_" in run("merchant", "key", "rotate", merchant, key_id, *data)
    assert "was rotated before" in run("merchant", "key", "rotate", merchant, key_id, *data, code=1)
    adjust = ("adjust", merchant, "--currency", "EUR", "--account", "goodwill", "--reason", "x")
    for amount, said in (("5.00", "write 1999 for 19.99"), ("1e3", "not an integer"), ("0", "between 1 and")):
        assert said in run(*adjust, "--amount", amount, *data, code=2 if amount != "0" else 1), amount
    assert "has no payment pay_" in run(*adjust, "--amount", "5", "--payment", "pay_" + "0" * 32, *data, code=1)
    assert "another admin has to change your role" in run("operator", "role", "ada", "viewer", *data, code=1)
    run("operator", "logout", *data)
    monkeypatch.setenv("FLORIN_OPERATOR_KEY", re.findall(r"fok_\w+", key)[0])
    assert "0 tried again" in run("dlq", "retry", "--all", *data)
    moved = run("adjust", merchant, "--amount", "5", "--currency", "EUR", "--account", "goodwill", "--reason", "x", *data, code=1)
    assert "ci is support, and this takes finance or admin" in moved
    monkeypatch.setenv("FLORIN_OPERATOR_KEY", "fok_wrong")
    assert "FLORIN_OPERATOR_KEY is unknown" in run("dlq", "retry", "--all", *data, code=1)
    acts = run("audit", *data)
    assert "operator.login " in acts
    assert "ci        dead_letters.retry" in acts or re.search(r"ci +dead_letters\.retry", acts)
    assert "merchant.key.rotate" in acts
