"""The messages between the parent and a load generator: one JSON document per line of its input and output.

The parent (`bench.lab.load`) and its generators (`bench.generator.main`) are processes of one machine; times are
`time.monotonic()`, which they share.
"""

import msgspec

from bench.generator.arrivals import Arrivals, Stage

SECONDS_MAX = 7_200.0
IN_FLIGHT_MAX = 16_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A bounded amount of load, for one of `parts` generators that share it evenly.

    `callers`: concurrent callers of a closed loop. `connections_max`: to the API, and as many to the PSP. `timeout_seconds`: when
    a journey counts as failed. `in_flight_max`: journeys that the schedule asks for beyond it are not begun, and counted as
    `not_begun`. `sockets`: websockets that listen, at least one for each key; `items`: payments of a batch journey.
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
        """The duration of the load."""
        return sum(stage.seconds for stage in self.stages)


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one second. `latencies_us`: of the successful journeys, some hundred at even ranks."""

    number: int
    begun: int
    ended: dict[str, int]
    in_flight: int
    latencies_us: list[int]
    max_us: int
    told: int


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a plan. `histograms`: HdrHistogram's compressed form, in µs since the intended start, by mark; `ok` is the
    whole journey. `lag`: how much later than intended journeys began, which is the generator's own fault. `told`: notifications
    since the previous plan.
    """

    ended: dict[str, int]
    begun: int
    not_begun: int
    seconds: float
    histograms: dict[str, str]
    told: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a generator: a second, or the end. An empty one means that it is ready."""

    second: Second | None = None
    tally: Tally | None = None
