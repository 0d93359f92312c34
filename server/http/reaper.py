"""One task that ends overdue connections.

A cancel scope per read would cost more than the request; instead every connection carries a deadline, and this task looks at all
of them a few times a second and shuts down the socket of those that are late, which wakes their task with an end of file. It also
keeps the clock that everyone reads, so that a deadline costs an attribute.
"""

import math
import time
from email.utils import formatdate
from typing import Protocol

import trio

TICK_SECONDS = 0.25


class Reapable(Protocol):
    """Something with a deadline on the reaper's clock."""

    deadline: float

    def expire(self) -> None:
        """The deadline has passed."""
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
                watched.deadline = math.inf
                watched.expire()
            await trio.sleep(TICK_SECONDS)


def _date_header() -> bytes:
    return b"date: " + formatdate(time.time(), usegmt=True).encode() + b"\r\n"
