"""A part of an instance: a child process that is started again, after a backoff, if it ends unexpectedly.

A part that fails repeatedly ends the instance, with the last lines of its log. Must be used in the main thread
(`server.child_process`).
"""

import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from core.errors import FlorinError
from server import child_process

RESTART_DELAYS_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
"""After as many failures in a row the instance ends."""

HEALTHY_SECONDS = 30.0
_log = structlog.get_logger()


class PartFailed(FlorinError):
    """A part of the instance ends again and again."""

    code = "part_failed"


class Part:
    """A part. `start` starts its process and returns it; `ready` waits until it serves, and raises `FlorinError` if it does not.

    `last_words` returns the end of its log.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], subprocess.Popen[bytes]],
        ready: Callable[[], Awaitable[None]],
        *,
        stop_signal: signal.Signals,
        stop_seconds: float,
        last_words: Callable[[], str] = str,
    ) -> None:
        self.name = name
        self._start = start
        self._ready = ready
        self._stop_signal = stop_signal
        self._stop_seconds = stop_seconds
        self._last_words = last_words
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self.process is not None
        return self.process.pid

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Part"]:
        """Start the part, and stop it at the end of the block. Raises `FlorinError` if it cannot be started."""
        try:
            self.process = self._start()
            await self._ready()
            yield self
        finally:
            if self.process is not None:
                with trio.move_on_after(self._stop_seconds + child_process.KILL_SECONDS, shield=True):
                    await child_process.stop(self.process, first=self._stop_signal, seconds=self._stop_seconds)

    async def keep(self) -> None:
        """Start the part again whenever it ends, until canceled. Raises `PartFailed`."""
        failures = 0
        while True:
            assert self.process is not None
            began = trio.current_time()
            code = await child_process.wait(self.process)
            failures = 0 if trio.current_time() - began > HEALTHY_SECONDS else failures
            while True:
                if failures == len(RESTART_DELAYS_SECONDS):
                    words = self._last_words()
                    raise PartFailed(
                        f"{self.name} has ended {failures} times in a row (exit code {code}); no data is lost"
                        + (f". The end of its log:\n{words}" if words else "; the reason is in the log above")
                    )
                _log.error("a part of this instance ended and is started again", part=self.name, code=code)
                await trio.sleep(RESTART_DELAYS_SECONDS[failures])
                failures += 1
                self.restarts += 1
                try:
                    self.process = self._start()
                    await self._ready()
                except (FlorinError, OSError, subprocess.SubprocessError) as error:
                    _log.error("a part of this instance cannot be started", part=self.name, error=str(error))
                    await child_process.stop(self.process, first=self._stop_signal, seconds=self._stop_seconds)
                    code = self.process.returncode
                    continue
                _log.error("a part of this instance serves again", part=self.name)
                break
