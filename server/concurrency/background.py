"""Work that goes on after its request was answered, or while its request waits for it only so long.

Whoever starts work here has committed what it intends: work that is cut off by the end of the worker is finished by the follow-up
job. Bounded: past `TASKS_MAX` tasks nothing is started.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import outcome
import structlog
import trio

from core.errors import FlorinError, Overloaded

TASKS_MAX = 1_024
_log = structlog.get_logger()

T = TypeVar("T")


class Work(Generic[T]):
    """A piece of work under way."""

    def __init__(self) -> None:
        self._ended = trio.Event()
        self._outcome: outcome.Outcome[T] | None = None

    async def result(self, *, seconds: float) -> T | None:
        """What it came to, or None where it has not ended after so long. Raises what it raised."""
        with trio.move_on_after(seconds):
            await self._ended.wait()
        return self._outcome.unwrap() if self._outcome is not None else None

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do the work and keep what came of it."""
        try:
            self._outcome = outcome.Value(await work())
        except FlorinError as error:
            self._outcome = outcome.Error(error)
            _log.warning("work behind a request failed; the follow-up goes on with it", error=str(error))
        except Exception as error:  # noqa: BLE001 - one request's failure must not end the worker
            self._outcome = outcome.Error(error)
            _log.exception("work behind a request failed in an unexpected way")
        finally:
            self._ended.set()


class Background:
    """The owner of the tasks. `run` is their nursery."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._under_way = 0
        self._idle = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def require_room(self) -> None:
        """Raises `Overloaded` where no more tasks may be started."""
        if self._nursery is None or self._under_way >= TASKS_MAX:
            raise Overloaded("too many payments are under way")

    def start(self, work: Callable[[], Awaitable[T]]) -> Work[T]:
        """Start a piece of work. Raises `Overloaded`."""
        self.require_room()
        assert self._nursery is not None
        started = Work[T]()
        self._under_way += 1
        self._nursery.start_soon(self._run, started, work)
        return started

    async def _run(self, started: Work[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            await started.run(work)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
                self._idle = trio.Event()

    async def drain(self, *, seconds: float) -> None:
        """Wait until the tasks have ended, or so long."""
        if self._under_way:
            with trio.move_on_after(seconds):
                await self._idle.wait()
