"""One task that ends overdue connections.

A cancel scope per read would cost more than the request; instead every connection carries a deadline, and this task looks at all
of them a few times a second and shuts down the socket of those that are late, which wakes their task with an end of file. It also
keeps the clock that everyone reads, so that a deadline costs an attribute.
"""

import time
from email.utils import formatdate
from typing import Protocol

import structlog
import trio

TICK_SECONDS = 0.25
_log = structlog.get_logger()


class Reapable(Protocol):
    """Something with a deadline on the reaper's clock."""

    @property
    def deadline(self) -> float:
        """On trio's clock."""
        ...

    def expire(self) -> None:
        """The deadline has passed. Called again at each tick until it has moved, or this is no longer watched."""
        ...


class Reaper:
    """The clock and the set of what it watches."""

    def __init__(self) -> None:
        self.now = trio.current_time()
        self.watched: set[Reapable] = set()
        self.date_header = _date_header()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        task_status.started()
        while True:
            self.now = trio.current_time()
            self.date_header = _date_header()
            for watched in [one for one in self.watched if one.deadline <= self.now]:
                try:
                    watched.expire()
                except Exception:  # noqa: BLE001 - a mistake about one connection must not end the watch over all
                    _log.exception("an overdue connection could not be ended")
            await trio.sleep(TICK_SECONDS)


def _date_header() -> bytes:
    return b"date: " + formatdate(time.time(), usegmt=True).encode()
