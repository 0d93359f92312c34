"""Stripe's documents as Stripe writes them: signatures, amounts, captures, and stripe-stateful-mock."""

import json
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import stripe

from core.errors import InvalidSignature, Malformed, PspBusy, PspOutcomeUnknown
from core.evidence import EvidenceKind
from core.ids import PspAccountId
from core.money import Money
from core.signing import sign_timestamped
from server.http.client.client import open_client
from server.psp.guard import Guard, Limits
from server.psp.stripe import events
from server.psp.stripe.api import RETRY_HEADER, headers
from server.psp.stripe.form import encode
from server.psp.stripe.objects import descriptor_suffix, from_stripe, to_stripe
from server.psp.transport import Deadlines, PspCall, PspTransport
from tests.conftest import ROOT, program
from tests.support.counterparty import process
from tests.support.florin import UNSHARED
from tests.support.stripe import SECRET

ACCOUNT = PspAccountId(UUID(int=7))


def test_the_sdk_believes_our_signatures_and_we_believe_the_sdks() -> None:
    body = json.dumps({"id": "evt_1", "object": "event", "type": "charge.updated", "data": {"object": {"id": "ch_1"}}}).encode()
    now = int(time.time())
    ours = sign_timestamped(SECRET, timestamp=now, body=body)
    event = stripe.Webhook.construct_event(body, ours, SECRET)
    assert event["id"] == "evt_1"

    theirs = f"t={now},v1={stripe.WebhookSignature._compute_signature(f'{now}.{body.decode()}', SECRET)}"
    rotating = f"t={now},v1={'0' * 64},v0=1,v1={theirs.rpartition('=')[2]}"
    for header in (theirs, rotating):
        for secrets in ((SECRET,), ("whsec_new", SECRET)):
            given = {b"stripe-signature": header.encode()}
            notice = events.read(given, body, secrets, ACCOUNT, is_live=False, now=now)
            assert (notice.event_id, notice.evidence) == ("evt_1", ())


@pytest.mark.parametrize("shift_seconds", [-301, 301])
def test_an_old_or_forged_webhook_of_stripe_is_refused(shift_seconds: int) -> None:
    now = int(time.time())
    old = sign_timestamped(SECRET, timestamp=now + shift_seconds, body=b"{}")
    forged = sign_timestamped("whsec_other", timestamp=now, body=b"{}")
    for header in (old, forged, "", "t=1", "v1=00"):
        with pytest.raises(InvalidSignature):
            events.read({b"stripe-signature": header.encode()}, b"{}", (SECRET,), ACCOUNT, is_live=False, now=now)


def test_a_signed_body_that_is_no_event_is_malformed() -> None:
    now = int(time.time())
    for body in (b"{}", b"[]", b"\xff", b'{"id":"e","type":"payment_intent.succeeded","data":{"object":{"id":1}}}'):
        signed = {b"stripe-signature": sign_timestamped(SECRET, timestamp=now, body=body).encode()}
        with pytest.raises(Malformed):
            events.read(signed, body, (SECRET,), ACCOUNT, is_live=False, now=now)


def test_a_partial_capture_and_an_end_by_itself_are_read_as_stripe_documents_them() -> None:
    ids = {f"florin_{name}": str(UUID(int=1)) for name in ("merchant", "payment", "operation")}
    intent = {"id": "pi_1", "amount": 5_000, "currency": "jpy", "created": 1, "metadata": {**ids, "florin_kind": "token"}}
    cases: list[tuple[dict[str, object], EvidenceKind, int | None]] = [
        ({"status": "succeeded", "amount_received": 3_000}, EvidenceKind.CAPTURED, 3_000),
        ({"status": "canceled", "cancellation_reason": "automatic"}, EvidenceKind.EXPIRED, None),
        ({"status": "requires_capture", "amount_received": 0}, EvidenceKind.AUTHORIZED, 5_000),
    ]
    for fields, kind, amount in cases:
        thing: dict[str, object] = {**intent, **fields}
        event = {"id": "e", "type": "payment_intent.canceled", "data": {"object": thing}}
        read = msgspec.json.decode(msgspec.json.encode(event), type=events.Event)
        (evidence,) = events.notice_of(read, ACCOUNT, is_live=False).evidence
        assert (evidence.kind, evidence.money.amount_minor if evidence.money else None) == (kind, amount)


@pytest.mark.parametrize(
    ("money", "amount"),
    [
        (Money(1_990, "EUR"), 1_990),
        (Money(500, "JPY"), 500),
        (Money(500, "ISK"), 50_000),
        (Money(500, "UGX"), 50_000),
        (Money(50_000, "MGA"), 500),
        (Money(50_050, "MGA"), None),
        (Money(1_230, "KWD"), 1_230),
        (Money(1_234, "KWD"), None),
    ],
)
def test_amounts_are_stripes_own(money: Money, amount: int | None) -> None:
    assert to_stripe(money) == amount
    if amount is not None:
        assert from_stripe(amount, money.currency.lower()) == money


@asynccontextmanager
async def a_wire(url: str) -> AsyncIterator[PspTransport]:
    guard = Guard(Limits(), UNSHARED, admission_seconds_max=1)
    deadlines = Deadlines(seconds=5, read_seconds=5, connect_seconds=1)
    async with open_client() as http:
        yield PspTransport(
            http,
            guard,
            base_url=url,
            headers=headers("sk_test_florin"),
            deadlines=deadlines,
            observe=lambda *_: None,
            rng=random.Random(1),
            retry_header=RETRY_HEADER,
        )


@pytest.fixture
async def stateful_mock() -> AsyncIterator[PspTransport]:
    """stripe-stateful-mock (npm): it knows charges only, but replays idempotent requests and fails on demand."""
    node = program("node")
    package = ROOT / ".node" / "node_modules" / "stripe-stateful-mock"
    if not package.exists():
        program("stripe-stateful-mock: npm install --prefix .node stripe-stateful-mock@0.0.16")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f"require('http').createServer(require({str(package)!r}).createExpressApp()).listen({port}, '127.0.0.1')"
    url = f"http://127.0.0.1:{port}"
    async with process(node, "-e", script, url=url, env={"LOG_LEVEL": "silent"}), a_wire(url) as wire:
        yield wire


async def charge_there(wire: PspTransport, source: str, key: str) -> tuple[int, dict[str, Any]]:
    body = encode({"amount": 1_990, "currency": "eur", "source": source})
    answer = await wire.call(PspCall.CHARGE, "POST", "/v1/charges", body=body, headers=[("idempotency-key", key)], is_keyed=True)
    return answer.response.status, json.loads(answer.response.body)


async def test_a_repeated_key_is_one_charge(stateful_mock: PspTransport) -> None:
    first = await charge_there(stateful_mock, "tok_visa", "k")
    again = await charge_there(stateful_mock, "tok_visa", "k")
    other = await charge_there(stateful_mock, "tok_visa", "l")
    assert first[0] == again[0] == 200
    assert first[1]["id"] == again[1]["id"] != other[1]["id"]


async def test_a_throttled_call_to_stripe_did_nothing(stateful_mock: PspTransport) -> None:
    with pytest.raises(PspBusy):
        await charge_there(stateful_mock, "tok_429", "k")
    assert stateful_mock.guard.concurrency.limit < stateful_mock.guard.concurrency.ceiling


async def test_a_500_is_repeated_with_its_key_and_is_then_unknown(stateful_mock: PspTransport) -> None:
    with pytest.raises(PspOutcomeUnknown):
        await charge_there(stateful_mock, "tok_500", "k")
    assert (await charge_there(stateful_mock, f"tok_429|tok_visa|{uuid4().hex}", "m"))[0] == 200


async def test_a_decline_of_stripe_is_an_answer(stateful_mock: PspTransport) -> None:
    status, body = await charge_there(stateful_mock, "tok_chargeDeclinedInsufficientFunds", "k")
    assert (status, body["error"]["decline_code"]) == (402, "insufficient_funds")


async def test_a_charge_that_stripe_forgets_is_not_found(stateful_mock: PspTransport) -> None:
    status, body = await charge_there(stateful_mock, "tok_forget", "k")
    assert status == 200
    answer = await stateful_mock.call(PspCall.FETCH, "GET", f"/v1/charges/{body['id']}")
    assert answer.response.status == 404


def test_a_descriptor_is_reduced_to_what_stripe_accepts() -> None:
    cases = {"Shop *7": "Shop 7", "1234": None, "<\\'>": None, None: None, "Kaffee": "Kaffee"}
    assert {text: descriptor_suffix(text) for text in cases} == cases


def test_an_unreadable_event_does_not_hide_the_others() -> None:
    odd = {"id": "re_1", "amount": 5, "currency": "eur", "status": None, "payment_intent": "pi_1"}
    event = {"id": "e", "type": "refund.updated", "data": {"object": odd}}
    read = msgspec.json.decode(msgspec.json.encode(event), type=events.Event)
    notice = events.listed(read, ACCOUNT, is_live=False)
    assert (notice.evidence, notice.problem is not None) == ((), True)
