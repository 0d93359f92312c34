"""A stateful test over the HTTP API of a real instance, against a model that is simple enough to be obviously right."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from core.ids import PAYMENT, decode_id
from server.db.connection import Connection
from server.db.doctor.run import broken_promises
from server.process.instance import Instance, Options, open_instance
from tests.support.florin import PAID, REFUSED

pytestmark = pytest.mark.slow

AMOUNT = 1_000
TIMEOUT_SECONDS = 30.0
FAULTS = st.sampled_from(["answer", "answer", "answer", "lose", "drop"])
WEBHOOKS = st.sampled_from(["send", "hold", "reverse", "repeat"])


@dataclass
class Model:
    """The expected state of a payment."""

    id: str
    url: str | None
    status: str
    is_manual: bool
    captured: int = 0
    refunded: int = 0


class Checkout(RuleBasedStateMachine):
    """The rules. `instance` and `restart` are set by the test."""

    instance: Instance
    database: psycopg.Connection[Any]

    def __init__(self) -> None:
        super().__init__()
        self.http = httpx2.Client(timeout=20)
        self.payments: list[Model] = []
        self.spent = self._balance()

    # A merchant's and a customer's acts

    @initialize()
    def begin(self) -> None:
        self._control(create="answer", capture="answer", void="answer", refund="answer", webhooks="send")

    @rule(manual=st.booleans(), fault=FAULTS)
    def charge(self, manual: bool, fault: str) -> None:
        body = {"confirm": True, "token": "tok_paid", "capture": "manual" if manual else "automatic"}
        reply = self._surely("payments", body, fault={"create": "lose" if fault == "drop" else fault})
        status = "AUTHORIZED" if manual else "SUCCEEDED"
        self.payments.append(Model(reply["id"], None, status, manual, captured=0 if manual else AMOUNT))

    @rule()
    def charge_declined(self) -> None:
        reply = self._surely("payments", {"confirm": True, "token": "tok_declined"}, ends=(402,))
        self.payments.append(Model(reply["payment"]["id"], None, "DECLINED", is_manual=False))

    @rule(manual=st.booleans(), fault=FAULTS)
    def open_page(self, manual: bool, fault: str) -> None:
        fault = "answer" if fault == "drop" else fault
        reply = self._surely("payments", {"capture": "manual" if manual else "automatic"}, fault={"create": fault})
        self.payments.append(Model(reply["id"], reply["payment_url"], "PENDING", manual))

    @precondition(lambda self: self._any("PENDING"))
    @rule(data=st.data(), refused=st.booleans())
    def pay(self, data: st.DataObject, refused: bool) -> None:
        payment = self._pick(data, "PENDING")
        if refused:
            assert self._pay(payment, REFUSED).status_code == 402
        assert self._pay(payment, PAID).status_code in (200, 303)
        payment.status = "AUTHORIZED" if payment.is_manual else "SUCCEEDED"
        payment.captured = 0 if payment.is_manual else AMOUNT

    @precondition(lambda self: self._any("AUTHORIZED"))
    @rule(data=st.data(), amount=st.integers(1, AMOUNT), fault=FAULTS)
    def capture(self, data: st.DataObject, amount: int, fault: str) -> None:
        payment = self._settled(data, "AUTHORIZED")
        self._surely(f"payments/{payment.id}/capture", {"amount": amount}, fault={"capture": fault})
        payment.status, payment.captured = "SUCCEEDED", amount

    @precondition(lambda self: self._any("AUTHORIZED", "PENDING"))
    @rule(data=st.data(), fault=FAULTS)
    def cancel(self, data: st.DataObject, fault: str) -> None:
        payment = self._settled(data, "AUTHORIZED", "PENDING")
        self._surely(f"payments/{payment.id}/cancel", {}, fault={"void": fault, "close": fault})
        payment.status = "CANCELED"

    @precondition(lambda self: self._refundable())
    @rule(data=st.data(), share=st.integers(1, AMOUNT), fault=FAULTS)
    def refund(self, data: st.DataObject, share: int, fault: str) -> None:
        payment = data.draw(st.sampled_from(self._refundable()))
        self._until(payment)
        amount = min(share, payment.captured - payment.refunded)
        reply = self._surely(f"payments/{payment.id}/refunds", {"amount": amount}, fault={"refund": fault})
        assert reply["amount"] == amount
        payment.refunded += amount

    @precondition(lambda self: self._refundable())
    @rule(data=st.data())
    def refund_too_much(self, data: st.DataObject) -> None:
        payment = data.draw(st.sampled_from(self._refundable()))
        self._until(payment)
        amount = payment.captured - payment.refunded + 1
        reply = self._surely(f"payments/{payment.id}/refunds", {"amount": amount}, ends=(409,))
        assert reply["code"] == "refund_too_large"

    @precondition(lambda self: self._any("PENDING"))
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        payment = self._pick(data, "PENDING")
        self.database.execute(
            "UPDATE payment_requests SET expires_at = now(), due_at = now() WHERE id = %s", (decode_id(PAYMENT, payment.id),)
        )
        payment.status = "EXPIRED"
        self._until(payment)

    # Faults

    @rule(how=WEBHOOKS)
    def webhooks(self, how: str) -> None:
        self._control(webhooks=how)

    @rule()
    def crash(self) -> None:
        os.kill(self.instance.supervisor.pids[0], signal.SIGKILL)

    # The end

    def teardown(self) -> None:
        self._control(webhooks="release")
        for payment in self.payments:
            self._until(payment)
        expected = self.spent + sum(payment.captured - payment.refunded for payment in self.payments)
        self._wait(lambda: self._balance() == expected, f"the wallet holds {expected}")
        self.http.close()

    def _refundable(self) -> list[Model]:
        return [one for one in self.payments if one.status == "SUCCEEDED" and one.refunded < one.captured]

    def _any(self, *statuses: str) -> list[Model]:
        return [one for one in self.payments if one.status in statuses]

    def _pick(self, data: st.DataObject, *statuses: str) -> Model:
        picked: Model = data.draw(st.sampled_from(self._any(*statuses)))
        return picked

    def _settled(self, data: st.DataObject, *statuses: str) -> Model:
        """A payment that the server must know to be settled: a webhook may be held back, but a read checks at the PSP."""
        payment = self._pick(data, *statuses)
        self._until(payment)
        return payment

    def _until(self, payment: Model) -> None:
        url, headers = self._url(f"payments/{payment.id}"), self._headers()
        shown: dict[str, Any] = {}

        def as_expected() -> bool:
            nonlocal shown
            shown = self.http.get(url, headers=headers).json()
            seen = (shown["status"], shown["captured_amount"], shown["refunded_amount"])
            return seen == (payment.status, payment.captured, payment.refunded)

        self._wait(as_expected, lambda: f"{payment} but the API says {shown}")

    def _surely(
        self, path: str, body: dict[str, Any], *, fault: dict[str, str] | None = None, ends: tuple[int, ...] = (200, 201)
    ) -> dict[str, Any]:
        """Send a request under a fault, then again with the same key and without the fault, until there is a definitive reply."""
        if path == "payments":
            body = {"amount": AMOUNT, "currency": "EUR", "order_id": uuid4().hex, **body}
        headers = {**self._headers(), "idempotency-key": uuid4().hex}
        self._control(**(fault or {}))
        reply: dict[str, Any] = {}

        def asked() -> bool:
            nonlocal reply
            response = self.http.post(self._url(path), json=body, headers=headers)
            reply = response.json()
            self._control(**dict.fromkeys(fault or {}, "answer"))
            passing = response.status_code in (502, 503, 504) or reply.get("code") == "idempotency_key_in_flight"
            assert response.status_code in ends or passing, (response.status_code, reply)
            return response.status_code in ends

        self._wait(asked, lambda: f"{path} {body}: {reply}")
        return reply

    def _wait(self, is_so: Callable[[], bool], what: str | Callable[[], str]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                if is_so():
                    return
            except (httpx2.TransportError, KeyError):
                pass  # the worker was killed
            time.sleep(0.05)
        raise AssertionError(what if isinstance(what, str) else what())

    def _balance(self) -> int:
        rows = self.database.execute("SELECT coalesce(sum(balance_minor), 0)::bigint FROM wallets").fetchall()
        balance: int = rows[0][0]
        return balance

    def _pay(self, payment: Model, card: str) -> httpx2.Response:
        assert payment.url is not None
        return self.http.post(payment.url, data={"card": card})

    def _control(self, **wanted: str) -> None:
        self.http.post(f"{self.instance.running.psp_url}/control", json=wanted)

    def _url(self, path: str) -> str:
        return f"{self.instance.api_url}/v1/{path}"

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.instance.demo.api_key}"}


@pytest.mark.timeout(600)
async def test_the_api_does_what_the_model_does(directory: Path, request: pytest.FixtureRequest) -> None:
    examples, steps = (200, 40) if request.config.getoption("--long") else (6, 15)
    limits = {"FLORIN_DELIVERY_SECONDS": "2", "FLORIN_PSP_SECONDS": "2", "FLORIN_LOG_LEVEL": "error"}
    options = Options(data_directory=directory, workers=1, port=0, psp_port=0, shop_port=0, settings=limits)
    async with open_instance(options) as instance:
        Checkout.instance = instance
        Checkout.database = psycopg.connect(instance.database_url, autocommit=True)
        how = settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not request.config.getoption("--long"),
            suppress_health_check=list(HealthCheck),
        )
        await trio.to_thread.run_sync(partial(run_state_machine_as_test, Checkout, settings=how))
        Checkout.database.close()
        connection = await Connection.open(instance.database_url)
        assert await broken_promises(connection) == []
        connection.discard()
