"""Tells this worker's job of batches that one was accepted or resumed here, so that it looks at once."""

import trio


class Bell:
    """Rung by who has something to do, waited for by who does it. What was rung before is heard at the next wait."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """There is something to do."""
        self._rung.set()

    async def wait(self, *, seconds: float) -> None:
        """Until it is rung, or so long."""
        with trio.move_on_after(seconds):
            await self._rung.wait()
        self._rung = trio.Event()
