"""Tasks that are kept for the next piece of work, because starting a task costs more than waking one.

Each piece of work is done once, by a task that is free or a new one. At most `kept_max` tasks wait for work; others end.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class KeptTasks(Generic[T]):
    """The tasks. `work` does one piece; `begin` may be called from any task once `nursery` is set, and never waits."""

    def __init__(self, work: Callable[[T], Awaitable[None]], *, kept_max: int) -> None:
        self.nursery: trio.Nursery | None = None
        self._work = work
        self._kept_max = kept_max
        self._wanted: deque[T] = deque()
        self._free: list[trio.lowlevel.Task] = []

    def begin(self, piece: T) -> None:
        """Have a piece of work done."""
        assert self.nursery is not None
        self._wanted.append(piece)
        if self._free:
            trio.lowlevel.reschedule(self._free.pop())
        else:
            self.nursery.start_soon(self._run)

    async def _run(self) -> None:
        while True:
            while self._wanted:  # a task that was woken may find that another one was faster
                await self._work(self._wanted.popleft())
            if len(self._free) >= self._kept_max:
                return
            await self._wait()

    async def _wait(self) -> None:
        task = trio.lowlevel.current_task()
        self._free.append(task)

        def leave(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._free.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
