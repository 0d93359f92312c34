"""The clocks: the system's, and the database's, by which a worker goes.

Code that needs the time takes it as an argument; the processes pass one of these. All workers share one database and nothing
else, so whatever a worker stores, schedules, leases, expires or prunes goes by the database's clock. A worker asks for it with
every heartbeat, and the monotonic clock carries it on in between. The system's clock then counts for nothing, but if it is far
from the database's one of the two is wrong, and beyond `SKEW_SECONDS_MAX` a worker refuses to serve.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from core.errors import FlorinError

SKEW_SECONDS_MAX = 30.0
SKEW_SECONDS_WARN = 1.0


def utc_now() -> datetime:
    """The system's time, with its zone."""
    return datetime.now(UTC)


class ClockSkewed(FlorinError):
    """This machine's clock and the database's disagree; the text says by how much."""

    code = "clock_skewed"


@dataclass(frozen=True, slots=True)
class Measured:
    """`skew_seconds`: how far this machine's clock is ahead of the database's. `step_seconds`: how far the database's clock has
    jumped ahead since the last measurement.
    """

    skew_seconds: float
    step_seconds: float

    def require_small(self) -> None:
        """Raise `ClockSkewed` if the clocks are too far apart to serve."""
        if abs(self.skew_seconds) > SKEW_SECONDS_MAX:
            raise ClockSkewed(
                f"this machine's clock is {described(self.skew_seconds)} the database's, and more than "
                f"{SKEW_SECONDS_MAX:.0f} s is not safe: correct the wrong one (NTP); Florin serves again as soon as they agree"
            )


class DatabaseClock:
    """The clock of one worker. `adopt` must be called before `now`."""

    def __init__(self, *, wall: Callable[[], datetime] = utc_now, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self.monotonic = monotonic
        self._ahead_seconds: float | None = None

    def now(self) -> datetime:
        """The database's time."""
        assert self._ahead_seconds is not None, "the database's clock was not read yet"
        return datetime.fromtimestamp(self._ahead_seconds + self.monotonic(), UTC)

    def adopt(self, database_now: datetime, *, asked_at: float) -> Measured:
        """Go by this time of the database, which was asked for at `asked_at` on the monotonic clock and has just arrived."""
        arrived_at = self.monotonic()
        on_its_way = timedelta(seconds=(arrived_at - asked_at) / 2)
        now = database_now + on_its_way
        step = (now - self.now()).total_seconds() if self._ahead_seconds is not None else 0.0
        self._ahead_seconds = now.timestamp() - arrived_at
        return Measured(skew_seconds=(self._wall() - now).total_seconds(), step_seconds=step)


def described(seconds: float) -> str:
    """A skew in words, e.g. `31.0 days ahead of`."""
    text = ""
    left = abs(seconds)
    if left < 60:
        text = f"{left:.1f} s"
    elif left < 3_600:
        text = f"{left / 60:.0f} min"
    elif left < 2 * 86_400:
        text = f"{left / 3_600:.1f} h"
    else:
        text = f"{left / 86_400:.1f} days"
    return f"{text} {'ahead of' if seconds > 0 else 'behind'}"
