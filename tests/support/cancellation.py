"""Cancels a call at its n-th step, so that every checkpoint of it can be tried."""

from collections.abc import Awaitable, Callable

import trio


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when any task, or only this one, is about to take the n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int, task: trio.lowlevel.Task | None) -> None:
        self._scope = scope
        self._left = step
        self._task = task

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if self._task in (None, task):
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_at(step: int, call: Callable[[], Awaitable[object]], *, task: trio.lowlevel.Task | None = None) -> bool:
    """Run the call, canceled at that step of any task or of `task`. Returns whether the step was reached."""
    with trio.CancelScope() as scope:
        instrument = _CancelAtStep(scope, step, task)
        trio.lowlevel.add_instrument(instrument)
        try:
            await call()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancel_called
