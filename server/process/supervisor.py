"""The parent of the workers: starts them, replaces dead ones, drains them, and kills those that do not end.

It owns every worker's listening socket, so a replacement inherits its predecessor's and no connection in the backlog is reset.
Invariants: every slot has a worker; a dead worker is replaced after a backoff; if the first worker of a slot reports that it
cannot be set up, everything ends with its reason; after `run` nothing is left running. Must run in the main thread
(`server.child_process`).
"""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial

import structlog
import trio

from core.errors import FlorinError
from server import child_process
from server.process.worker import EXIT_SETUP_FAILED

RESTART_DELAYS_SECONDS = (0.0, 0.2, 1.0, 5.0)
HEALTHY_SECONDS = 10.0
START_SECONDS = 30.0
KILL_MARGIN_SECONDS = 1.0
_log = structlog.get_logger()


class SupervisorError(FlorinError):
    """The workers cannot be started."""

    code = "supervisor_error"


class Supervisor:
    """Keeps one worker on each socket. `environment` is the workers' whole environment."""

    def __init__(self, sockets: Sequence[socket.socket], *, environment: Mapping[str, str], drain_seconds: float) -> None:
        self._sockets = sockets
        self._environment = environment
        self._drain_seconds = drain_seconds
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self.restarts = 0

    @property
    def pids(self) -> list[int]:
        """The process ids of the running workers, in the order of their sockets."""
        return [self._workers[slot].pid for slot in sorted(self._workers)]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running until canceled, then stop them all. Started when every worker serves.

        Raises `SupervisorError` if a worker cannot be set up.
        """
        try:
            async with trio.open_nursery() as slots:
                async with trio.open_nursery() as starting:
                    for slot in range(len(self._sockets)):
                        starting.start_soon(slots.start, self._keep, slot)
                task_status.started()
        finally:
            await self._stop_all()  # noqa: ASYNC102 - shielded, with a deadline, there

    async def _keep(self, slot: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep one slot filled."""
        failures = 0
        has_started = False
        while True:
            began = trio.current_time()
            if await self._start(slot) and not has_started:
                has_started = True
                task_status.started()
            code = await child_process.wait(self._workers[slot])
            if code == EXIT_SETUP_FAILED and not has_started:
                raise SupervisorError("a worker cannot be set up; the reason is in the log above")
            failures = 0 if trio.current_time() - began > HEALTHY_SECONDS else failures + 1
            if failures > len(RESTART_DELAYS_SECONDS) and not has_started:
                raise SupervisorError("the workers end as soon as they start; the reason is in the log above")
            delay = RESTART_DELAYS_SECONDS[min(failures, len(RESTART_DELAYS_SECONDS)) - 1] if failures else 0.0
            _log.warning("a worker ended and will be replaced", slot=slot, code=code, delay_seconds=delay)
            self.restarts += 1
            await trio.sleep(delay)

    async def _start(self, slot: int) -> bool:
        """Start a worker and wait until it serves or has ended."""
        reading, writing = os.pipe()
        listening = self._sockets[slot].fileno()
        try:
            self._workers[slot] = child_process.spawn(
                child_process.python("server.process.worker", str(listening), str(writing)),
                death_signal=signal.SIGTERM,
                pass_fds=(listening, writing),
                environment=self._environment,
            )
        finally:
            os.close(writing)
        if await child_process.is_ready(reading, seconds=START_SECONDS):
            return True
        self._workers[slot].kill()
        return False

    async def _stop_all(self) -> None:
        seconds = self._drain_seconds + KILL_MARGIN_SECONDS
        with trio.move_on_after(seconds + child_process.KILL_SECONDS, shield=True):
            async with trio.open_nursery() as stopping:
                for worker in self._workers.values():
                    stopping.start_soon(partial(child_process.stop, worker, first=signal.SIGTERM, seconds=seconds))
