"""Work that continues after its request was answered, or while its request waits for it for a limited time.

Work is started here only for what is already committed, so the follow-up job can finish work that is cut off by the end of the
worker. At most `TASKS_MAX` tasks run.
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
    """A task under way."""

    def __init__(self) -> None:
        self._ended = trio.Event()
        self._outcome: outcome.Outcome[T] | None = None

    async def result(self, *, seconds: float) -> T | None:
        """Return the result, or None if there is none after that many seconds. Raises what the task raised."""
        with trio.move_on_after(seconds):
            await self._ended.wait()
        return self._outcome.unwrap() if self._outcome is not None else None

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Run the task and keep its result."""
        try:
            self._outcome = outcome.Value(await work())
        except FlorinError as error:
            self._outcome = outcome.Error(error)
            _log.warning("background work failed; the follow-up job will finish it", error=str(error))
        except Exception as error:  # noqa: BLE001 - one request's failure must not end the worker
            self._outcome = outcome.Error(error)
            _log.exception("background work failed unexpectedly")
        finally:
            self._ended.set()


class Background:
    """The owner of the tasks. `run` is their nursery."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._under_way = 0
        self._idle = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks until canceled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    @property
    def has_room(self) -> bool:
        """True if a task can be started."""
        return self._nursery is not None and self._under_way < TASKS_MAX

    def require_room(self) -> None:
        """Raise `Overloaded` if no more tasks can be started."""
        if not self.has_room:
            raise Overloaded("too many payments are under way")

    def start(self, work: Callable[[], Awaitable[T]]) -> Work[T]:
        """Start a task. Raises `Overloaded`."""
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
        """Wait until the tasks have ended, or that many seconds have passed."""
        if self._under_way:
            with trio.move_on_after(seconds):
                await self._idle.wait()
