"""What a customer or a merchant does, one generator function a scenario: it yields what it waits for and returns how it ended.

A journey knows no clock and no socket. It yields `Ask` (a request; it is sent the answer), `Hear` (the notification of a payment,
over every channel of the plan) or `Mark` (a point in time worth a histogram of its own), and returns `OK` or the reason why not.
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
"""Of `mixed`, how much only reads."""

_CREATE = msgspec.json.encode({"amount": 1_990, "currency": "EUR", "order_id": "bench"})
_CHARGE = msgspec.json.encode({"amount": 1_990, "currency": "EUR", "order_id": "bench", "confirm": True, "token": "tok_paid"})
_FORM = b"card=4242424242424242"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to the API, or to the PSP's hosted page."""

    data: bytes
    is_psp: bool = False


@dataclass(frozen=True, slots=True)
class Hear:
    """Wait until the merchant was told of a payment."""

    payment_id: str


@dataclass(frozen=True, slots=True)
class Mark:
    """So long it has taken until here."""

    name: str


@dataclass(slots=True)
class Answer:
    """What was answered; `status` is 0 where the connection was lost, and -1 where it took too long."""

    status: int
    body: bytes

    @property
    def failure(self) -> str:
        """How a journey ends that cannot go on from here."""
        return {0: LOST, -1: "timeout"}.get(self.status) or str(self.status)


Wanted = Ask | Hear | Mark
Journey = Generator[Wanted, Answer, str]


class World:
    """What journeys share: the API and its keys, which are taken in turn."""

    def __init__(self, url: str, keys: list[str], rng: random.Random, *, items: int = 1) -> None:
        parts = urlsplit(url)
        self.items = items
        self.host, self.rng, self.recent = parts.netloc.encode(), rng, list[tuple[str, str]]()
        self._keys = keys
        self._numbers = count()
        self._prefix = uuid4().hex  # not of the seed: a key that was used before would only be replayed
        self._charges = [self._head(key, _CHARGE) for key in keys]
        self._creates = [self._head(key, _CREATE) for key in keys]

    def _head(self, key: str, body: bytes) -> tuple[bytes, bytes]:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "idempotency-key": "\0"}
        before, _, after = request("POST", "/v1/payments", self.host, headers=headers, body=body).partition(b"\0")
        return before, after

    def charge(self) -> tuple[str, bytes]:
        """A key, and the request that charges a token in one step."""
        return self._post(self._charges)

    def create(self) -> tuple[str, bytes]:
        """A key, and the request that opens a page."""
        return self._post(self._creates)

    def _post(self, heads: list[tuple[bytes, bytes]]) -> tuple[str, bytes]:
        number = next(self._numbers)
        chosen = number % len(self._keys)
        before, after = heads[chosen]
        return self._keys[chosen], before + f"{self._prefix}-{number}".encode() + after

    def batch(self) -> bytes:
        """The request that charges as many tokens as a batch has."""
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
        """A request that needs no body."""
        return request("POST", path, self.host, headers={"authorization": f"Bearer {key}"})

    def remember(self, key: str, payment_id: str) -> None:
        """A payment that readers may read."""
        if len(self.recent) < 1_000:
            self.recent.append((key, payment_id))
        else:
            self.recent[self.rng.randrange(1_000)] = (key, payment_id)


def hello(world: World) -> Journey:
    """The smallest answer of the instance: the wire, the router, one query."""
    answer = yield Ask(world.get("/healthz"))
    return OK if answer.status == 200 else answer.failure


def sync(world: World) -> Journey:
    """A token is charged at POST."""
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
    """A page is opened and paid, and the merchant is told: of all that the customer does, and until the notification."""
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
    answer = yield Hear(payment["id"])
    return OK if answer.status == 200 else "not told"


def verify(world: World) -> Journey:
    """A page is opened and paid, the PSP's webhook is lost, and the merchant asks."""
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
    """A batch of charges, answered when it is over."""
    answer = yield Ask(world.batch())
    if answer.status != 200:
        return answer.failure
    outcomes = _payment(answer)["outcomes"]
    return OK if outcomes["SUCCEEDED"] == world.items else f"outcomes {outcomes}"


def streamed(world: World) -> Journey:
    """A token is charged, and every socket of the merchant hears of it."""
    _, data = world.charge()
    answer = yield Ask(data)
    if answer.status != 201:
        return answer.failure
    yield Mark("charged")
    answer = yield Hear(_payment(answer)["id"])
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
