"""When requests begin: the schedule of an open loop. Pure: the generator's clock and socket know nothing of it.

In an open loop requests come when customers come, however slow the server is; a closed loop waits for an answer before it asks
again, and so offers a stalled server less load and hides the stall. Latency is measured from the intended start
(coordinated omission; Gil Tene, "How NOT to Measure Latency").
"""

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum

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
            at = begins + (interval * part / parts if kind is Arrivals.CONSTANT else rng.expovariate(1 / interval))
            while at < ends:
                yield at
                at += interval if kind is Arrivals.CONSTANT else rng.expovariate(1 / interval)
        begins = ends


def spike(rate: float, *, factor: float, before_seconds: float, seconds: float, after_seconds: float) -> list[Stage]:
    """A steady rate, so many times that for a while, and the steady rate again."""
    return [Stage(before_seconds, rate), Stage(seconds, rate * factor), Stage(after_seconds, rate)]


def steps(rates: Sequence[float], *, seconds: float) -> list[Stage]:
    """One rate after another, each for as long."""
    return [Stage(seconds, rate) for rate in rates]
