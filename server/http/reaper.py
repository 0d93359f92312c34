"""One task that ends overdue connections.

A cancel scope per read would cost more than the request. Instead every connection has a deadline attribute, and this task checks
all of them a few times a second and shuts down the sockets of overdue ones, which wakes their tasks with an end of file. It also
keeps the clock that they read. While there are no connections it sleeps.
"""

import time
from email.utils import formatdate
from typing import Protocol

import structlog
import trio

TICK_SECONDS = 0.25
_log = structlog.get_logger()


class Reapable(Protocol):
    """An object with a deadline on the reaper's clock."""

    @property
    def deadline(self) -> float:
        """On trio's clock."""
        ...

    def expire(self) -> None:
        """Called when the deadline has passed, and at each tick until it has moved or the object is no longer watched."""
        ...


class Reaper:
    """The clock and the set of watched objects."""

    def __init__(self) -> None:
        self.now = trio.current_time()
        self.watched: set[Reapable] = set()
        self.date_header = _date_header()
        self._is_needed = trio.Event()

    def watch(self, one: Reapable) -> None:
        """Watch an object from now on, until it is removed from `watched`."""
        if not self.watched:
            self._read_clocks()
            self._is_needed.set()
        self.watched.add(one)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until canceled."""
        task_status.started()
        while True:
            if not self.watched:
                self._is_needed = trio.Event()
                await self._is_needed.wait()
            self._read_clocks()
            for watched in [one for one in self.watched if one.deadline <= self.now]:
                try:
                    watched.expire()
                except Exception:  # noqa: BLE001 - a bug about one connection must not end the watch over all
                    _log.exception("an overdue connection could not be ended")
            await trio.sleep(TICK_SECONDS)

    def _read_clocks(self) -> None:
        self.now = trio.current_time()
        self.date_header = _date_header()


def _date_header() -> bytes:
    return b"date: " + formatdate(time.time(), usegmt=True).encode()
