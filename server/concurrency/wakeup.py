"""An auto-reset event: a wakeup before `wait` is not lost, and several before it count once."""

import trio


class Wakeup:
    """One waiter, any number of wakers."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def wake(self) -> None:
        """Wake the waiter, now or at its next `wait`."""
        self._event.set()

    async def wait(self, *, seconds: float) -> bool:
        """Wait until woken, at most that many seconds. Returns whether it was woken."""
        with trio.move_on_after(seconds):
            await self._event.wait()
        was_woken = self._event.is_set()
        self._event = trio.Event()
        return was_woken
