"""When requests begin: the schedule of an open loop. Pure: the generator's clock and socket know nothing of it.

In an open loop requests come when customers come, however slow the server is; a closed loop waits for an answer before it asks
again, and so offers a stalled server less load and hides the stall. Latency is measured from the intended start
(coordinated omission; Gil Tene, "How NOT to Measure Latency").
"""

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import accumulate, count

import msgspec


class Arrivals(StrEnum):
    """How requests are spread over a stage. `CLOSED`: no schedule, so many callers each with one request after another."""

    CONSTANT = "constant"
    POISSON = "poisson"
    CLOSED = "closed"


class Stage(msgspec.Struct, frozen=True):
    """So many seconds at so many requests per second."""

    seconds: float
    rate: float


def intended_starts(
    stages: Sequence[Stage], *, kind: Arrivals, rng: random.Random, part: int = 0, parts: int = 1
) -> Iterator[float]:
    """Seconds from the begin at which requests start, for one of several generators that share the rate evenly.

    Constant parts are offset so that together they are constant; Poisson parts are drawn apart, and their sum is Poisson too.
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
    # Not by adding up: after an hour the last digits would have made a request of their own.
    return (first + number * interval for number in count())


def _random(interval: float, rng: random.Random) -> Iterator[float]:
    return accumulate(rng.expovariate(1 / interval) for _ in count())


def spike(rate: float, *, factor: float, before_seconds: float, seconds: float, after_seconds: float) -> list[Stage]:
    """A steady rate, so many times that for a while, and the steady rate again."""
    return [Stage(before_seconds, rate), Stage(seconds, rate * factor), Stage(after_seconds, rate)]


def steps(rates: Sequence[float], *, seconds: float) -> list[Stage]:
    """One rate after another, each for as long."""
    return [Stage(seconds, rate) for rate in rates]
