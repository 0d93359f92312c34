"""What the use cases of one worker work with. Made by the worker, passed explicitly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from server.db.change_batch import NewDelivery
from server.db.database import Database
from server.psp.routing import Routing


@dataclass(frozen=True, slots=True)
class Services:
    """`notify` hands committed deliveries to the job that sends them; it never waits and may drop what the lease recovers."""

    db: Database
    psps: Routing
    notify: Callable[[Sequence[NewDelivery]], None]
    psp_seconds: float
    now: Callable[[], datetime]


def utc_now() -> datetime:
    """The current time, with its zone."""
    return datetime.now(UTC)
