"""What a load generator is told and what it tells: one JSON document a line, over its input and output.

The parent (`bench.lab.load`) and its generators (`bench.generator.main`) are processes of one machine; times are
`time.monotonic()`, which they share.
"""

import msgspec

from bench.generator.arrivals import Arrivals, Stage

SECONDS_MAX = 7_200.0
IN_FLIGHT_MAX = 16_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of load, bounded in time and count; for one of `parts` generators that share it evenly.

    `callers`: in a closed loop, how many at a time. `connections_max`: to the API, and as many to the PSP. `timeout_seconds`:
    when a journey counts as failed. `in_flight_max`: what the schedule asks for beyond it is not begun, and counts as
    `not_begun`. `sockets`: how many websockets hear, one for each key at least; `items`: how many payments a journey makes, where
    it is a batch.
    """

    scenario: str
    url: str
    psp_url: str | None
    keys: list[str]
    arrivals: Arrivals
    stages: list[Stage]
    callers: int
    count_max: int
    begin_at: float
    connections_max: int
    timeout_seconds: float = 30.0
    in_flight_max: int = IN_FLIGHT_MAX
    hears_webhooks: bool = False
    hears_stream: bool = False
    sockets: int = 0
    items: int = 1
    seed: int = 1
    part: int = 0
    parts: int = 1

    @property
    def seconds(self) -> float:
        """How long load is offered."""
        return sum(stage.seconds for stage in self.stages)


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """What a second brought. `latencies_us`: of the journeys that ended well, some hundred at even ranks."""

    number: int
    begun: int
    ended: dict[str, int]
    in_flight: int
    latencies_us: list[int]
    max_us: int
    told: int


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a plan. `histograms`: HdrHistogram's compressed form, in µs since the intended start, by mark; `ok` is the whole
    journey. `lag`: how much later than intended journeys began, which is the generator's own fault. `told`: notifications since
    the plan before this one.
    """

    ended: dict[str, int]
    begun: int
    not_begun: int
    seconds: float
    histograms: dict[str, str]
    told: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a generator: a second, or the end; an empty one says that it is ready."""

    second: Second | None = None
    tally: Tally | None = None
