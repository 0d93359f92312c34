"""The schedule of an open loop: the times at which requests begin. It is pure: no clock, no socket.

In an open loop requests arrive when customers do, however slow the server is. A closed loop waits for an answer before the next
request, and so offers a stalled server less load and hides the stall. Latency is measured from the intended start (coordinated
omission; Gil Tene, "How NOT to Measure Latency").
"""

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import accumulate, count

import msgspec


class Arrivals(StrEnum):
    """The spread of requests over a stage. `CLOSED`: no schedule, but callers that send one request after another."""

    CONSTANT = "constant"
    POISSON = "poisson"
    CLOSED = "closed"


class Stage(msgspec.Struct, frozen=True):
    """A number of seconds at a rate of requests per second."""

    seconds: float
    rate: float


def intended_starts(
    stages: Sequence[Stage], *, kind: Arrivals, rng: random.Random, part: int = 0, parts: int = 1
) -> Iterator[float]:
    """The start times in seconds, for one of several generators that share the rate evenly.

    Constant parts are offset so that together they are constant; Poisson parts are drawn independently, so their sum is Poisson
    too.
    """
    assert kind is not Arrivals.CLOSED
    begins = 0.0
    for stage in stages:
        ends = begins + stage.seconds
        if stage.rate > 0:
            interval = parts / stage.rate
            offsets = _even(interval, first=interval * part / parts) if kind is Arrivals.CONSTANT else _random(interval, rng)
            for offset in offsets:
                if begins + offset >= ends:
                    break
                yield begins + offset
        begins = ends


def _even(interval: float, *, first: float) -> Iterator[float]:
    # Not by adding up: after an hour the rounding errors would have made a request of their own.
    return (first + number * interval for number in count())


def _random(interval: float, rng: random.Random) -> Iterator[float]:
    return accumulate(rng.expovariate(1 / interval) for _ in count())


def spike(rate: float, *, factor: float, before_seconds: float, seconds: float, after_seconds: float) -> list[Stage]:
    """A steady rate, a multiple of it for a while, and the steady rate again."""
    return [Stage(before_seconds, rate), Stage(seconds, rate * factor), Stage(after_seconds, rate)]


def steps(rates: Sequence[float], *, seconds: float) -> list[Stage]:
    """One rate after another, each for the same time."""
    return [Stage(seconds, rate) for rate in rates]
