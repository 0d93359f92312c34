"""Faults of the sandbox PSP: faults of single calls, latency, outages, a limit on requests per second.

A fault is set for a kind of call, for a number of times or until it is set back to `answer`. `hang`, `lose`, `half`, `drip` and
`reset_after` carry the request out and lose the answer; `hang_before`, `reset_before`, `drop`, `refuse`, `throttle` and
`conflict` do nothing.
"""

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
import trio

from core.nearest import unknown
from server.http.asgi import Abort, Send, respond

JSON = b"application/json"
CALLS = ("create", "capture", "close", "void", "refund", "fetch", "list")
HANG_SECONDS = 60.0
SLOW_SECONDS = 1.0
DRIP_SECONDS = 0.5
SECONDS_MAX = 3_600.0

Answer = tuple[int, dict[str, Any]]


class Fault(StrEnum):
    """The fault of a call."""

    ANSWER = "answer"
    SLOW = "slow"
    HANG = "hang"
    HANG_BEFORE = "hang_before"
    REFUSE = "refuse"
    DROP = "drop"
    LOSE = "lose"
    RESET_BEFORE = "reset_before"
    RESET_AFTER = "reset_after"
    HALF = "half"
    DRIP = "drip"
    THROTTLE = "throttle"
    CONFLICT = "conflict"


class Outage(StrEnum):
    """The form of an outage."""

    RESET = "reset"
    UNAVAILABLE = "unavailable"
    HANG = "hang"


@dataclass(slots=True)
class _Set:
    fault: Fault
    times: float = math.inf


class Faults:
    """The faults that are set, and the counts. One per process; `seed` makes its latencies repeatable."""

    def __init__(self, seed: int = 0) -> None:
        self._set = {call: _Set(Fault.ANSWER) for call in CALLS}
        self._rng = random.Random(seed)  # noqa: S311 - latencies
        self._latency_seconds: Callable[[], float] | None = None
        self._outage: tuple[Outage, float] | None = None
        self._requests_per_second_max = math.inf
        self._recent: deque[float] = deque()
        self.requests = 0
        self.floods = 0
        self.requests_per_second_peak = 0

    def set(self, wanted: dict[str, Any]) -> None:
        """Apply a control request. Raises ValueError, having set nothing, for an unknown setting."""
        wishes = {call: _parse_fault(call, wanted[call]) for call in CALLS if call in wanted}
        require_one_of("count", wanted.get("count", "anew"), ["anew"])
        latency = _latency(self._rng, wanted["latency"]) if "latency" in wanted else self._latency_seconds
        outage = self._outage
        if "outage_seconds" in wanted:
            kind = require_one_of("outage", wanted.get("outage", "reset"), Outage)
            outage = Outage(kind), trio.current_time() + parse_seconds(wanted["outage_seconds"])
        limit = wanted.get("requests_per_second_max", self._requests_per_second_max)
        if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool) or limit < 0):
            raise ValueError("requests_per_second_max: expected a number, or null for no limit")
        self._set |= wishes
        self._latency_seconds = latency
        self._outage = outage
        self._requests_per_second_max = math.inf if limit is None else float(limit)
        if "count" in wanted:
            self.requests = self.floods = self.requests_per_second_peak = 0

    def shown(self) -> dict[str, Any]:
        """The settings and counts, for the answer of a control request."""
        counted = {"requests": self.requests, "floods": self.floods, "requests_per_second_peak": self.requests_per_second_peak}
        return {**{call: one.fault.value for call, one in self._set.items()}, **counted}

    async def serve(self, call: str, act: Callable[[], Answer], send: Send) -> None:
        """Carry out one call and answer it, with its fault. Raises `Abort`."""
        if self._is_too_much():
            await _send(send, 429, {"error": "too many requests"}, [(b"retry-after", b"1")])
            return
        await self._delay()
        fault = self._take(call)
        match fault:
            case Fault.HANG_BEFORE:
                await trio.sleep(HANG_SECONDS)
                raise Abort
            case Fault.REFUSE:
                await _send(send, 422, {"error": "refused, as set by the control API"})
            case Fault.DROP:
                await _send(send, 500, {"error": "lost before it was done, as set by the control API"})
            case Fault.THROTTLE:
                await _send(send, 429, {"error": "too many requests, as set by the control API"}, [(b"retry-after", b"1")])
            case Fault.CONFLICT:
                await _send(send, 409, {"error": "the same request is under way, as set by the control API"})
            case Fault.RESET_BEFORE:
                raise Abort
            case _:
                if fault is Fault.SLOW:
                    await trio.sleep(SLOW_SECONDS)
                await _answer(fault, act(), send)

    def _take(self, call: str) -> Fault:
        one = self._set[call]
        if one.fault is not Fault.ANSWER:
            one.times -= 1
            if one.times <= 0:
                self._set[call] = _Set(Fault.ANSWER)
        return one.fault

    def _is_too_much(self) -> bool:
        """Count a request. Returns whether it exceeds the limit per second."""
        now = time.monotonic()
        self.requests += 1
        while self._recent and self._recent[0] <= now - 1.0:
            self._recent.popleft()
        if len(self._recent) >= self._requests_per_second_max:
            self.floods += 1
            return True
        self._recent.append(now)
        self.requests_per_second_peak = max(self.requests_per_second_peak, len(self._recent))
        return False

    async def _delay(self) -> None:
        if self._outage is not None:
            kind, until = self._outage
            if trio.current_time() < until:
                await self._answer_outage(kind, until)
            else:
                self._outage = None
        if self._latency_seconds is not None:
            await trio.sleep(min(self._latency_seconds(), SECONDS_MAX))

    async def _answer_outage(self, kind: Outage, until: float) -> None:
        if kind is Outage.HANG:
            await trio.sleep_until(until)
        if kind is Outage.UNAVAILABLE:
            raise Unavailable
        raise Abort


class Unavailable(Exception):
    """The PSP is in an outage and says so: the caller answers 503."""


def require_one_of(what: str, given: object, known: Iterable[str]) -> str:
    """The value, if it is one of those. Raises ValueError, which lists them."""
    names = list(map(str, known))
    if isinstance(given, str) and given in names:
        return given
    raise ValueError(f"{what}: {unknown('value', str(given), names)}")


def _parse_fault(call: str, given: object) -> _Set:
    """Parse a fault by name, or with a number of times: {"fault": "lose", "times": 1}. Raises ValueError."""
    if not isinstance(given, dict):
        return _Set(Fault(require_one_of(call, given, Fault)))
    times = given.get("times", math.inf)
    if given.keys() - {"fault", "times"} or "fault" not in given or not isinstance(times, int | float) or times <= 0:
        raise ValueError(f'{call}: expected the name of a fault, or {{"fault": NAME, "times": 1}}')
    return _Set(Fault(require_one_of(call, given["fault"], Fault)), float(times))


def parse_seconds(given: object) -> float:
    """A duration. Raises ValueError."""
    if not isinstance(given, int | float) or not 0 <= given <= SECONDS_MAX:
        raise ValueError(f"expected a number of seconds between 0 and {SECONDS_MAX:.0f}, instead of {str(given)[:60]!r}")
    return float(given)


def _latency(rng: random.Random, given: dict[str, Any] | None) -> Callable[[], float] | None:
    """Parse {"seconds": s}, {"from_seconds": a, "to_seconds": b}, or log-normal {"p50_seconds": a, "p99_seconds": b}; null means
    none.
    """
    match given:
        case None:
            return None
        case {"seconds": fixed}:
            wait = parse_seconds(fixed)
            return lambda: wait
        case {"from_seconds": least, "to_seconds": most}:
            low, high = parse_seconds(least), parse_seconds(most)
            return lambda: rng.uniform(low, high)
        case {"p50_seconds": median, "p99_seconds": rare}:
            mu = math.log(max(parse_seconds(median), 1e-6))
            sigma = max(math.log(max(parse_seconds(rare), 1e-6)) - mu, 0.0) / 2.326
            return lambda: rng.lognormvariate(mu, sigma)
        case _:
            raise ValueError("latency takes seconds, or from_seconds and to_seconds, or p50_seconds and p99_seconds")


async def _answer(fault: Fault, answer: Answer, send: Send) -> None:
    """Send the answer, as far as the fault lets it through. Raises `Abort`."""
    status, content = answer
    if fault is Fault.LOSE and status < 300:
        await _send(send, 500, {"error": "done, and the answer is lost on purpose"})
        return
    if fault is Fault.HANG:
        await trio.sleep(HANG_SECONDS)
    if fault in (Fault.RESET_AFTER, Fault.HANG):
        raise Abort
    body = msgspec.json.encode(content)
    if fault not in (Fault.HALF, Fault.DRIP):
        await respond(send, status, body, content_type=JSON)
        return
    headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if fault is Fault.HALF:
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        raise Abort
    for at in range(len(body)):
        await send({"type": "http.response.body", "body": body[at : at + 1], "more_body": at + 1 < len(body)})
        await trio.sleep(DRIP_SECONDS)


async def _send(send: Send, status: int, content: dict[str, Any], headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await respond(send, status, msgspec.json.encode(content), content_type=JSON, headers=headers or [])
