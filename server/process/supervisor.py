"""The parent of the workers: starts them, watches them, replaces dead and stuck ones, and kills those that do not end.

It owns every worker's listening socket, so no connection in the backlog is reset when a worker dies. Invariants: every slot has
a worker, or gets one after a backoff; a worker whose event loop has been silent for `STUCK_SECONDS` is killed; a socket whose
worker does not accept is accepted from by the other workers, and if there is none, by this process, which answers 503; if no
worker can be set up, everything ends with the reason; after `run` nothing is left running. Must run in the main thread
(`server.child_process`).
"""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

import structlog
import trio

from core.errors import FlorinError
from server import child_process
from server.http.server.listener import Listener, ListenerOptions
from server.process.worker_link import Link, pair
from server.process.worker_process import EXIT_NOT_NOW, EXIT_SETUP_FAILED, unavailable
from server.uuid7 import uuid7

RESTART_DELAYS_SECONDS = (0.0, 0.2, 1.0, 5.0)
HEALTHY_SECONDS = 10.0
START_SECONDS = 30.0
KILL_MARGIN_SECONDS = 1.0
SILENT_SECONDS = 2.5
"""The other workers accept for one whose event loop has been silent for this time."""

STUCK_SECONDS = 10.0
STAND_IN_SECONDS = 1.0
"""This process answers for the workers once there has been none for this time."""

STAND_IN_CONNECTIONS_MAX = 512
SETUP_FAILURES_MAX = 3
"""Once workers have served, so many have to fail to be set up, one after another with none left, to end everything."""

_log = structlog.get_logger()


class SupervisorError(FlorinError):
    """The workers cannot be started."""

    code = "supervisor_error"


@dataclass(slots=True)
class _Worker:
    """The worker of a slot."""

    id: UUID
    process: subprocess.Popen[bytes]
    link: Link
    is_ready: bool = False
    accepts: bool = False


class Supervisor:
    """Keeps one worker on each socket. `environment` is the workers' whole environment, `drain_seconds` theirs too.

    `stand_in` are the options of the listener that answers while there is no worker.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        environment: Mapping[str, str],
        drain_seconds: float,
        stand_in: ListenerOptions | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._sockets = sockets
        self._environment = environment
        self._drain_seconds = drain_seconds
        self._stand_in_options = replace(stand_in or ListenerOptions(), connections_max=STAND_IN_CONNECTIONS_MAX)
        self._stop_signal = stop_signal
        self._workers: dict[int, _Worker] = {}
        self._changed = trio.Event()
        self.restarts = 0

    @property
    def pids(self) -> list[int]:
        """The process ids of the running workers, in the order of their sockets."""
        return [self._workers[slot].process.pid for slot in sorted(self._workers)]

    @property
    def accepting(self) -> int:
        """The number of workers that accept connections."""
        return sum(one.accepts for one in self._workers.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the workers running until canceled, then stop them all. Started when every worker serves.

        Raises `SupervisorError` if a worker cannot be set up.
        """
        child_process.allow_many_files()
        try:
            async with trio.open_nursery() as slots:
                async with trio.open_nursery() as starting:
                    for slot in range(len(self._sockets)):
                        starting.start_soon(slots.start, self._keep, slot)
                slots.start_soon(self._stand_in)
                task_status.started()
        finally:
            await self._stop_all()  # noqa: ASYNC102 - shielded, with a deadline, there

    async def _keep(self, slot: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep one slot filled."""
        failures = 0
        has_started = False
        while True:
            began = trio.current_time()
            try:
                if await self._start(slot) and not has_started:
                    has_started = True
                    task_status.started()
                code = await self._watch(slot)
            except OSError as error:  # the machine lacks memory, processes or files at the moment
                _log.error("a worker cannot be started", slot=slot, error=str(error))
                code = EXIT_NOT_NOW
            failures = 0 if code == 0 or trio.current_time() - began > HEALTHY_SECONDS else failures + 1
            self._require_a_chance(code, failures, has_started=has_started)
            delay = RESTART_DELAYS_SECONDS[min(failures, len(RESTART_DELAYS_SECONDS)) - 1] if failures else 0.0
            _log.warning("a worker ended and will be replaced", slot=slot, code=code, delay_seconds=delay)
            self.restarts += 1
            await trio.sleep(delay)

    def _require_a_chance(self, code: int, failures: int, *, has_started: bool) -> None:
        """Raise `SupervisorError` if starting another worker makes no sense. Workers that serve are left alone: a newer schema or
        an unreadable key keeps new ones from starting, but not them from serving.
        """
        if not has_started:
            if code in (EXIT_SETUP_FAILED, EXIT_NOT_NOW):
                raise SupervisorError("a worker cannot be set up; the reason is in the log above")
            if failures > len(RESTART_DELAYS_SECONDS):
                raise SupervisorError("the workers end as soon as they start; the reason is in the log above")
        elif code == EXIT_SETUP_FAILED and failures >= SETUP_FAILURES_MAX and not self.accepting:
            raise SupervisorError("no worker can be set up any more; the reason is in the log above")

    async def _start(self, slot: int) -> bool:
        """Start a worker and wait until it serves or has ended. It learns in whose place it comes."""
        predecessor = self._workers.get(slot)
        if predecessor is not None:
            predecessor.link.close()
        link, theirs = pair()
        listening = [one.fileno() for one in self._sockets]
        worker_id = uuid7()
        arguments = (worker_id.hex, predecessor.id.hex if predecessor else "-", theirs.fileno(), slot, *listening)
        try:
            process = child_process.spawn(
                child_process.python("server.process.worker_process", *map(str, arguments)),
                death_signal=signal.SIGTERM,
                pass_fds=(theirs.fileno(), *dict.fromkeys(listening)),
                environment=self._environment,
            )
        except BaseException:
            link.close()
            raise
        finally:
            theirs.close()
        worker = self._workers[slot] = _Worker(worker_id, process, link)
        with trio.move_on_after(START_SECONDS):
            if await link.hear() == "ready":
                worker.is_ready = True
                self._set_accepts(slot, accepts=True)
                for other, one in self._workers.items():
                    if not one.accepts:
                        self._tell_about(other, worker, slot)
                return True
        process.kill()
        return False

    async def _watch(self, slot: int) -> int:
        """Watch a worker until it has ended. Returns its exit code."""
        worker = self._workers[slot]
        async with trio.open_nursery() as watching:
            watching.start_soon(self._listen_to, slot)
            code = await child_process.wait(worker.process)
            watching.cancel_scope.cancel()
        self._set_accepts(slot, accepts=False)
        return code

    async def _listen_to(self, slot: int) -> None:
        """Follow a worker's signs of life, and kill it if they stop."""
        worker = self._workers[slot]
        heard_at = trio.current_time()
        is_ending = False
        while True:
            line: str | None = ""
            listening_since = trio.current_time()
            with trio.move_on_after(SILENT_SECONDS):
                line = await worker.link.hear()
            if line is None:
                return  # it has ended, or ends
            if line:
                heard_at = trio.current_time()
                is_ending = is_ending or line == "ending"
                self._set_accepts(slot, accepts=not is_ending)
                continue
            if trio.current_time() - listening_since > 2 * SILENT_SECONDS:  # this process was frozen too, with all of them
                heard_at = trio.current_time()
                continue
            self._set_accepts(slot, accepts=False)
            if trio.current_time() - heard_at > STUCK_SECONDS:
                _log.error("a worker is stuck and is killed", slot=slot, pid=worker.process.pid, seconds=STUCK_SECONDS)
                worker.process.kill()
                return

    def _set_accepts(self, slot: int, *, accepts: bool) -> None:
        """Note whether a slot's worker accepts, and tell the others."""
        worker = self._workers[slot]
        if worker.accepts == accepts:
            return
        worker.accepts = accepts
        for other, one in self._workers.items():
            if other != slot:
                self._tell_about(slot, one, other)
        self._changed.set()
        self._changed = trio.Event()

    def _tell_about(self, slot: int, worker: _Worker, its_slot: int) -> None:
        if self._sockets[slot] is not self._sockets[its_slot]:  # a unix socket is shared by all
            worker.link.tell(f"{'release' if self._workers[slot].accepts else 'adopt'} {slot}")

    async def _stand_in(self) -> None:
        """Answer 503 on all sockets while there has been no worker for a while, so that nobody waits in vain."""
        while True:
            with trio.move_on_after(STAND_IN_SECONDS) as waiting:
                while not self.accepting:
                    await self._changed.wait()
            if not waiting.cancelled_caught:
                await self._changed.wait()
                continue
            with ExitStack() as stack:
                shared = dict.fromkeys(self._sockets)
                sockets = [stack.enter_context(socket.socket(fileno=os.dup(one.fileno()))) for one in shared]
                listener = Listener(unavailable, sockets[0], self._stand_in_options)
                async with trio.open_nursery() as nursery:
                    await nursery.start(listener.run)
                    listener.retire()
                    for one in sockets[1:]:
                        listener.adopt(one)
                    while not self.accepting:
                        await self._changed.wait()
                    await listener.drain(seconds=STAND_IN_SECONDS)
                    nursery.cancel_scope.cancel()

    async def _stop_all(self) -> None:
        seconds = self._drain_seconds + KILL_MARGIN_SECONDS
        with trio.move_on_after(seconds + child_process.KILL_SECONDS, shield=True):
            async with trio.open_nursery() as stopping:
                for worker in self._workers.values():
                    # Python itself would answer SIGINT with a traceback while the worker is still being imported.
                    first = self._stop_signal if worker.is_ready else signal.SIGTERM
                    stopping.start_soon(partial(child_process.stop, worker.process, first=first, seconds=seconds))
        for worker in self._workers.values():
            worker.link.close()
