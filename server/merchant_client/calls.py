"""What is asked of the API and what its answers mean, without any I/O: both clients are loops around this."""

import random
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode
from uuid import uuid4

import msgspec

from server.resources import Consumer, Event, EventPage, Payment, Problem, Refund

T = TypeVar("T")

TRIES_MAX = 4
RETRY_SECONDS = (0.5, 1.0, 2.0)
RETRY_SECONDS_MAX = 30.0
LONG_POLL_SECONDS = 25
_TRANSIENT = frozenset({429, 502, 503, 504})


class ApiError(Exception):
    """The API refused. `code` is stable and `status` is HTTP's; `payment` is there where one was made all the same."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{problem.detail} ({problem.code}, {problem.request_id})")
        self.status = status
        self.code = problem.code
        self.path = problem.path if isinstance(problem.path, str) else None
        self.request_id = problem.request_id
        self.payment = problem.payment if isinstance(problem.payment, Payment) else None


class FlorinUnavailable(Exception):
    """No answer that could be read, after several tries. Repeat the call with its `idempotency_key` to learn how it ended."""

    def __init__(self, detail: str, *, idempotency_key: str | None) -> None:
        super().__init__(detail)
        self.idempotency_key = idempotency_key


class Gap(Exception):
    """Events after `after_seq` cannot be had any more. Read the state of things from the API, and go on after `seq`."""

    def __init__(self, *, after_seq: int | None, seq: int) -> None:
        super().__init__(f"what followed event {after_seq} is not kept; go on after {seq}")
        self.after_seq = after_seq
        self.seq = seq


@dataclass(frozen=True, slots=True)
class Ask(Generic[T]):
    """One request. `key` is its idempotency key, where it changes something."""

    method: str
    path: str
    reply: type[T]
    body: dict[str, Any] | None = None
    key: str | None = None
    timeout_seconds: float = 40.0

    def headers(self, api_key: str) -> dict[str, str]:
        """The headers of the request."""
        headers = {"authorization": f"Bearer {api_key}", "content-type": "application/json", "user-agent": "florin-python/1"}
        return headers if self.key is None else {**headers, "idempotency-key": self.key}

    def content(self) -> bytes:
        """The body of the request."""
        return msgspec.json.encode(self.body) if self.body is not None else b""


@dataclass(frozen=True, slots=True)
class Again:
    """Ask again after so many seconds, with the same key."""

    seconds: float


def read(ask: Ask[T], tries: int, status: int, retry_after: str | None, content: bytes) -> T | Again:
    """What an answer says. Raises `ApiError`, `FlorinUnavailable`."""
    try:
        if 200 <= status < 300:
            return msgspec.json.decode(content, type=ask.reply)
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.DecodeError as error:
        if tries < TRIES_MAX and status in _TRANSIENT:
            return Again(wait_seconds(tries, retry_after))
        raise FlorinUnavailable(f"the answer ({status}) cannot be read: {error}", idempotency_key=ask.key) from error
    is_passing = retry_after is not None or (status in _TRANSIENT and not isinstance(problem.payment, Payment))
    if is_passing and tries < TRIES_MAX:
        return Again(wait_seconds(tries, retry_after))
    raise ApiError(status, problem)


def wait_seconds(tries: int, retry_after: str | None = None) -> float:
    """How long to wait before the next try: what the server asks for, or a growing time with jitter."""
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), RETRY_SECONDS_MAX)
    jitter = 0.5 + random.random()  # noqa: S311 - spreads load, guards nothing
    return RETRY_SECONDS[min(tries, len(RETRY_SECONDS)) - 1] * jitter


def create(*, amount: int, currency: str, order_id: str, idempotency_key: str | None, fields: dict[str, Any]) -> Ask[Payment]:
    """`POST /v1/payments`."""
    body = {"amount": amount, "currency": currency, "order_id": order_id, **fields}
    return Ask("POST", "/v1/payments", Payment, body, idempotency_key or uuid4().hex)


def get(payment_id: str) -> Ask[Payment]:
    """`GET /v1/payments/{id}`."""
    return Ask("GET", f"/v1/payments/{quote(payment_id, safe='')}", Payment)


def refund(payment_id: str, *, amount: int | None, reason: str | None, idempotency_key: str | None) -> Ask[Refund]:
    """`POST /v1/payments/{id}/refunds`."""
    body = {name: value for name, value in (("amount", amount), ("reason", reason)) if value is not None}
    return Ask("POST", f"/v1/payments/{quote(payment_id, safe='')}/refunds", Refund, body, idempotency_key or uuid4().hex)


def acknowledge(consumer: str, seq: int) -> Ask[Consumer]:
    """`PUT /v1/consumers/{name}`."""
    return Ask("PUT", f"/v1/consumers/{quote(consumer, safe='')}", Consumer, {"acked_seq": seq})


@dataclass(slots=True)
class Following:
    """Where a reader of events is. `ask` for what follows, `take` the answer."""

    after_seq: int | None
    consumer: str | None
    types: tuple[str, ...]
    epoch: str | None = field(default=None, init=False)

    def ask(self) -> Ask[EventPage]:
        """What follows, as soon as there is something."""
        given = {"after": self.after_seq, "consumer": self.consumer, "epoch": self.epoch, "types": ",".join(self.types) or None}
        wanted = {name: value for name, value in given.items() if value is not None}
        query = {"wait": LONG_POLL_SECONDS, "limit": 100, **wanted}
        return Ask("GET", f"/v1/events?{urlencode(query)}", EventPage, timeout_seconds=LONG_POLL_SECONDS + 15)

    def take(self, page: EventPage) -> list[Event]:
        """The events of an answer. Raises `Gap`, and goes on behind it when asked again."""
        is_gap = not page.recovered and (self.after_seq is not None or self.epoch is not None)
        before, self.after_seq, self.epoch = self.after_seq, page.seq, page.epoch
        if is_gap:
            raise Gap(after_seq=before, seq=page.seq)
        return page.data
