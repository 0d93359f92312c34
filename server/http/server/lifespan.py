"""ASGI's lifespan: the application is told when the server starts and stops (asgi.readthedocs.io, lifespan 2.0).

An application that raises at the first message has no lifespan, and is served without one. An application that reports a failed
startup is not served. Startup and shutdown have a deadline.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from core.errors import FlorinError
from server.http.asgi import Application, Message, call

STARTUP_SECONDS = 60.0
SHUTDOWN_SECONDS = 10.0
_log = structlog.get_logger()


class StartupFailed(FlorinError):
    """The application reported a failed startup, or nothing in time."""

    code = "startup_failed"


@asynccontextmanager
async def open_lifespan(app: Application) -> AsyncIterator[dict[str, Any]]:
    """Start the application for the block, and yield the state that it has set.

    Raises `StartupFailed`, in a group, like everything that leaves the block.
    """
    life = _Life()
    state: dict[str, Any] = {}
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.run, app, scope)
        try:
            with trio.move_on_after(STARTUP_SECONDS) as deadline:
                await life.started.wait()
            if deadline.cancelled_caught:
                life.failure = f"the application did not start within {STARTUP_SECONDS:g} s"
            if life.failure is not None:
                raise StartupFailed(life.failure)
            yield state
        finally:
            life.stopping.set()
            if life.started.is_set() and life.failure is None:
                with trio.move_on_after(SHUTDOWN_SECONDS, shield=True):
                    await life.stopped.wait()
            life.scope.cancel()


class _Life:
    """The channel between the server and one call of the application."""

    def __init__(self) -> None:
        self.started, self.stopping, self.stopped = trio.Event(), trio.Event(), trio.Event()
        self.scope = trio.CancelScope(shield=True)
        """The application must be told even if the server was canceled; `open_lifespan` sets the deadline."""
        self.failure: str | None = None
        self._was_told = False

    async def run(self, app: Application, scope: dict[str, Any]) -> None:
        with self.scope:
            failure = await call(app, scope, self.receive, self.send)
            if failure is not None and self.started.is_set():
                _log.error("the application's lifespan failed", exc_info=failure)
            elif failure is not None:
                _log.warning("the application has no lifespan, or failed to begin it", error=repr(failure))
        self.started.set()
        self.stopped.set()

    async def receive(self) -> Message:
        if not self._was_told:
            self._was_told = True
            return {"type": "lifespan.startup"}
        await self.stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "lifespan.startup.complete":
                self.started.set()
            case "lifespan.startup.failed":
                self.failure = message.get("message") or "the application could not start"
                self.started.set()
            case "lifespan.shutdown.complete":
                self.stopped.set()
            case "lifespan.shutdown.failed":
                _log.error("the application could not stop as it should", message=message.get("message", ""))
                self.stopped.set()
            case other:
                raise RuntimeError(f"{other} cannot be sent here")
