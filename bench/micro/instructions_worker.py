"""The worker that `bench.micro.instructions` counts, and the switch that leaves a part of it out.

callgrind can be told to toggle counting whenever a C function is entered, and back when it returns, and to write out what it has
counted when another is entered. The operators `@` and `@=` and `dir` are such functions, which nothing else here uses: what runs
inside `step @ value` is not counted, except for what runs in there inside `step @= value`, because it belongs to another part.
Coroutines of a part are resumed inside such steps, one after another, so what other tasks do in between is counted.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import AsyncExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import msgspec
import trio
from trio.testing import wait_all_tasks_blocked

from server.api.app import Api
from server.api.payments import handlers
from server.child_process import allow_many_files
from server.db.group_commit import Committer
from server.db.pool import Pool
from server.flows.events.live_feeds import Feeds
from server.flows.payments import submit
from server.flows.webhooks.send import Sender
from server.http.server.connection import Connection
from server.jobs.webhooks.parallel import Deliverer
from server.process.worker import open_worker
from server.process.worker_process import settle_memory
from server.psp.sandbox.adapter import SandboxAdapter
from server.settings import Settings
from server.telemetry import configure_logs

PARTS: dict[str, list[tuple[Any, str]]] = {
    "HTTP in": [(Connection, "_serve_next")],
    "API: authentication, validation, reply": [(Api, "__call__")],
    "flow": [(handlers, "create"), (submit, "settle")],
    "PSP call": [(SandboxAdapter, "charge")],
    "commits": [(Committer, "submit"), (Committer, "_write_next")],
    "delivery": [(Deliverer, "notify"), (Sender, "attempt"), (Feeds, "publish")],
}
"""The functions of each part. What one calls that belongs to another part is that part's."""

SLOWDOWN = 50.0
"""The factor by which the worker's clock is slower than the machine's, because so is the worker under valgrind. Otherwise jobs
that run once a second would execute as much as the payments."""

WAVE_SECONDS = 0.02
"""So long nothing may happen before a group is written: the answers of the PSP arrive one by one."""


class Given(msgspec.Struct, frozen=True):
    """The argument of this program. `descriptor` is the listening socket."""

    database_url: str
    key_file: str
    descriptor: int


class Switch:
    """The part that runs at the moment, and the one that is left out."""

    def __init__(self) -> None:
        self.running = self.left_out = ""
        self._originals = {(owner, name): getattr(owner, name) for functions in PARTS.values() for owner, name in functions}

    def install(self) -> None:
        """Put the switch around the functions of all parts."""
        for part, functions in PARTS.items():
            for owner, name in functions:
                setattr(owner, name, self._wrapped(part, self._originals[owner, name]))

    def uninstall(self) -> None:
        """Remove it."""
        for (owner, name), original in self._originals.items():
            setattr(owner, name, original)

    def _wrapped(self, part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def begin(*args: Any, **kwargs: Any) -> Any:
            found = _Step(self, part, lambda _: original(*args, **kwargs)).take(None)
            return _Part(self, part, found) if isinstance(found, Coroutine) else found

        return begin


class _Step:
    """One step of a part."""

    __slots__ = ("_part", "_run", "_switch")

    def __init__(self, switch: Switch, part: str, run: Callable[[Any], Any]) -> None:
        self._switch = switch
        self._part = part
        self._run = run

    def __matmul__(self, value: Any) -> Any:
        return self._run(value)

    def __imatmul__(self, value: Any) -> Any:
        return self._run(value)

    def take(self, value: Any) -> Any:
        """Run it, and toggle counting if it enters or leaves what is left out."""
        switch, part = self._switch, self._part
        outer, switch.running = switch.running, part
        try:
            if (outer == switch.left_out) == (part == switch.left_out):
                return self._run(value)
            if part == switch.left_out:
                return self @ value
            step = self
            step @= value
            return step
        finally:
            switch.running = outer


class _Part(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are those of a part."""

    def __init__(self, switch: Switch, part: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self.send = _Step(switch, part, coroutine.send).take  # type: ignore[method-assign]
        self.throw = coroutine.throw  # type: ignore[method-assign]

    def send(self, value: Any) -> Any:
        """Replaced by each object's own."""
        raise NotImplementedError

    def throw(self, *args: Any) -> Any:
        """Replaced by each object's own."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        step: Callable[[Any], Any] = self.send
        while True:
            try:
                wanted = step(value)
            except StopIteration as end:
                return end.value
            try:
                value, step = (yield wanted), self.send
            except BaseException as error:  # noqa: BLE001, ASYNC103 - thrown into the coroutine, which raises it again
                value, step = error, self.throw

    def close(self) -> None:
        """Close the coroutine."""
        self._coroutine.close()


class SlowClock(trio.abc.Clock):
    """A clock of trio's that runs `SLOWDOWN` times slower than the machine's."""

    def start_clock(self) -> None:
        """See `trio.abc.Clock`."""

    def current_time(self) -> float:
        """See `trio.abc.Clock`."""
        return time.perf_counter() / SLOWDOWN

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """See `trio.abc.Clock`."""
        return (deadline - self.current_time()) * SLOWDOWN


def _write_in_waves() -> None:
    """Let a committer write when nothing else can run, so that groups have the same size in every repeat.

    Otherwise it depends on PostgreSQL's speed, compared with which a worker under valgrind is slow, how many items gather.
    """
    write_next = Committer._write_next

    async def wait_and_write(committer: Committer[Any, Any]) -> None:
        await wait_all_tasks_blocked(WAVE_SECONDS)
        await write_next(committer)

    Committer._write_next = wait_and_write  # type: ignore[method-assign,assignment]


async def _open_all(pool: Pool, size: int) -> None:
    """Open every connection of the pool: a login costs as much as a hundred payments, and the pool grows when it happens to."""
    async with AsyncExitStack() as stack:
        for _ in range(size):
            await stack.enter_async_context(pool.connection())


async def _run(given: Given) -> None:
    settings = Settings(
        database_url=given.database_url,
        key_file=Path(given.key_file),
        webhook_networks="127.0.0.0/8,::1",
        requests_in_flight_max=16_000,
    )
    _write_in_waves()
    switch = Switch()
    async with open_worker(settings, socket.socket(fileno=given.descriptor)) as (contexts, _):
        await _open_all(contexts.payments.pool, settings.pool_size)
        settle_memory()
        while True:
            await trio.lowlevel.wait_readable(0)
            for order in os.read(0, 1_024).decode().splitlines():
                if order == "dump":
                    dir(order)
                elif order == "plain":
                    switch.uninstall()
                elif order.startswith("without "):
                    switch.install()
                    switch.left_out = order.removeprefix("without ")
                print("done", flush=True)


if __name__ == "__main__":
    configure_logs("error")
    allow_many_files()
    trio.run(_run, msgspec.json.decode(sys.argv[1], type=Given), clock=SlowClock())
