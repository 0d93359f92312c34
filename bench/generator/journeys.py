"""The journeys of customers and merchants, one generator function per scenario. A journey yields what it waits for and returns
its result.

A journey has no clock and no socket. It yields `Ask` (a request, whose answer it is sent), `AwaitNotification` (the notification
of a payment, over every channel of the plan) or `Mark` (a point in time with a histogram of its own), and returns `OK` or the
reason of its failure.
"""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec

from bench.generator.http import request

OK = "ok"
LOST = "lost"
READ_SHARE = 0.3
"""The share of `mixed` that only reads."""

_CREATE = msgspec.json.encode({"amount": 1_990, "currency": "EUR", "order_id": "bench"})
_CHARGE = msgspec.json.encode({"amount": 1_990, "currency": "EUR", "order_id": "bench", "confirm": True, "token": "tok_paid"})
_FORM = b"card=4242424242424242"


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request to the API, or to the PSP's hosted page."""

    data: bytes
    is_psp: bool = False


@dataclass(frozen=True, slots=True)
class AwaitNotification:
    """Wait for the notification of a payment."""

    payment_id: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Record the time up to this point."""

    name: str


@dataclass(slots=True)
class Answer:
    """An answer. `status` is 0 if the connection was lost, and -1 after a timeout."""

    status: int
    body: bytes

    @property
    def failure(self) -> str:
        """The result of a journey that cannot continue after this answer."""
        return {0: LOST, -1: "timeout"}.get(self.status) or str(self.status)


Wanted = Ask | AwaitNotification | Mark
Journey = Generator[Wanted, Answer, str]


class World:
    """Shared by all journeys: the API and its keys, used in turn."""

    def __init__(self, url: str, keys: list[str], rng: random.Random, *, items: int = 1) -> None:
        parts = urlsplit(url)
        self.items = items
        self.host, self.rng, self.recent = parts.netloc.encode(), rng, list[tuple[str, str]]()
        self._keys = keys
        self._numbers = count()
        self._prefix = uuid4().hex  # independent of the seed: a key that was used before would only be replayed
        self._charges = [self._head(key, _CHARGE) for key in keys]
        self._creates = [self._head(key, _CREATE) for key in keys]

    def _head(self, key: str, body: bytes) -> tuple[bytes, bytes]:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "idempotency-key": "\0"}
        before, _, after = request("POST", "/v1/payments", self.host, headers=headers, body=body).partition(b"\0")
        return before, after

    def charge(self) -> tuple[str, bytes]:
        """An API key, and the request that charges a token in one step."""
        return self._post(self._charges)

    def create(self) -> tuple[str, bytes]:
        """An API key, and the request that opens a page."""
        return self._post(self._creates)

    def _post(self, heads: list[tuple[bytes, bytes]]) -> tuple[str, bytes]:
        number = next(self._numbers)
        chosen = number % len(self._keys)
        before, after = heads[chosen]
        return self._keys[chosen], before + f"{self._prefix}-{number}".encode() + after

    def batch(self) -> bytes:
        """The request that charges a batch of tokens."""
        item = {"type": "charge", "amount": 1_990, "currency": "EUR", "token": "tok_paid"}
        items = [{**item, "order_id": f"bench-{number}"} for number in range(self.items)]
        number = next(self._numbers)
        headers = {
            "authorization": f"Bearer {self._keys[number % len(self._keys)]}",
            "content-type": "application/json",
            "idempotency-key": f"{self._prefix}-{number}",
        }
        body = msgspec.json.encode({"items": items})
        return request("POST", "/v1/batches", self.host, headers=headers, body=body)

    def get(self, path: str, key: str | None = None) -> bytes:
        """A request that reads."""
        return request("GET", path, self.host, headers={"authorization": f"Bearer {key}"} if key else {})

    def post(self, path: str, key: str) -> bytes:
        """A request without a body."""
        return request("POST", path, self.host, headers={"authorization": f"Bearer {key}"})

    def remember(self, key: str, payment_id: str) -> None:
        """Keep a payment for journeys that read."""
        if len(self.recent) < 1_000:
            self.recent.append((key, payment_id))
        else:
            self.recent[self.rng.randrange(1_000)] = (key, payment_id)


def hello(world: World) -> Journey:
    """The cheapest request to the instance: the HTTP server, the router, one query."""
    answer = yield Ask(world.get("/readyz"))
    return OK if answer.status == 200 else answer.failure


def sync(world: World) -> Journey:
    """Charge a token at POST."""
    _, data = world.charge()
    answer = yield Ask(data)
    return OK if answer.status == 201 else answer.failure


def mixed(world: World) -> Journey:
    """Charges, and reads of what was charged: one payment, or the first page of the list."""
    if world.recent and world.rng.random() < READ_SHARE:
        key, payment_id = world.rng.choice(world.recent)
        is_list = world.rng.random() < 0.2
        answer = yield Ask(world.get("/v1/payments?limit=20" if is_list else f"/v1/payments/{payment_id}", key))
        yield Mark("list" if is_list else "read")
        return OK if answer.status == 200 else answer.failure
    key, data = world.charge()
    answer = yield Ask(data)
    if answer.status != 201:
        return answer.failure
    yield Mark("charge")
    world.remember(key, _payment(answer)["id"])
    return OK


def checkout(world: World) -> Journey:
    """Open a page, pay on it, and wait for the merchant's notification."""
    _, data = world.create()
    answer = yield Ask(data)
    if answer.status != 201:
        return answer.failure
    yield Mark("created")
    payment = _payment(answer)
    answer = yield Ask(_pay(payment), is_psp=True)
    if answer.status not in (200, 303):
        return f"psp {answer.failure}"
    yield Mark("paid")
    answer = yield AwaitNotification(payment["id"])
    return OK if answer.status == 200 else "not told"


def verify(world: World) -> Journey:
    """Open a page and pay on it; the PSP's webhook is lost, and the merchant asks."""
    key, data = world.create()
    answer = yield Ask(data)
    if answer.status != 201:
        return answer.failure
    payment = _payment(answer)
    answer = yield Ask(_pay(payment), is_psp=True)
    if answer.status not in (200, 303):
        return f"psp {answer.failure}"
    yield Mark("paid")
    answer = yield Ask(world.post(f"/v1/payments/{payment['id']}/verify", key))
    if answer.status != 200:
        return answer.failure
    return OK if _payment(answer)["status"] == "SUCCEEDED" else "not settled"


def _payment(answer: Answer) -> Any:
    return msgspec.json.decode(answer.body)


def _pay(payment: Any) -> bytes:
    parts = urlsplit(payment["payment_url"])
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return request("POST", parts.path, parts.netloc.encode(), headers=headers, body=_FORM)


def batch(world: World) -> Journey:
    """A batch of charges, answered when it has ended."""
    answer = yield Ask(world.batch())
    if answer.status != 200:
        return answer.failure
    outcomes = _payment(answer)["outcomes"]
    return OK if outcomes["SUCCEEDED"] == world.items else f"outcomes {outcomes}"


def streamed(world: World) -> Journey:
    """Charge a token, and wait until every websocket of the merchant has the event."""
    _, data = world.charge()
    answer = yield Ask(data)
    if answer.status != 201:
        return answer.failure
    yield Mark("charged")
    answer = yield AwaitNotification(_payment(answer)["id"])
    return OK if answer.status == 200 else "not told"


JOURNEYS: dict[str, Callable[[World], Journey]] = {
    "hello": hello,
    "sync": sync,
    "mixed": mixed,
    "checkout": checkout,
    "verify": verify,
    "batch": batch,
    "streamed": streamed,
}
