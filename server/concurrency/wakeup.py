"""An auto-reset event: a wakeup before `wait` is not lost, and several before it are one."""

import trio


class Wakeup:
    """One waiter, any number of wakers."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def wake(self) -> None:
        """Let the waiter go on: at once, or at its next `wait`."""
        self._event.set()

    async def wait(self, *, seconds: float) -> None:
        """Wait until woken, at most so long."""
        with trio.move_on_after(seconds):
            await self._event.wait()
        self._event = trio.Event()
