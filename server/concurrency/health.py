"""The health of a worker: whether it can take requests, and why not.

The heartbeat writes to the database once a second, so a database that can be read but not written, as with a full disk, is known
within `WRITTEN_SECONDS` without a probe of its own.
"""

from dataclasses import dataclass, field

import trio

from core.errors import FlorinError

WRITTEN_SECONDS = 3.0


@dataclass(slots=True)
class Health:
    """The health of this worker. `written_at`: trio's time when the last committed heartbeat began.

    `failure` is why this worker must not serve any more; `failed` is set with it. `is_draining`: it is about to end,
    and `is_hurried`: without lingering. `is_doubted`: another session has found the database read-only, so the next heartbeat
    looks on a new one.
    """

    written_at: float = float("-inf")
    is_draining: bool = False
    is_hurried: bool = False
    is_doubted: bool = False
    failure: FlorinError | None = None
    failed: trio.Event = field(default_factory=trio.Event)

    def fail(self, failure: FlorinError) -> None:
        """End the worker for this reason."""
        self.failure = self.failure or failure
        self.failed.set()

    def doubt(self) -> None:
        """Have the next heartbeat find out on a new session whether the database can be written."""
        self.is_doubted = True

    @property
    def problem(self) -> str | None:
        """The reason for not being ready, or None."""
        if self.failure is not None:
            return self.failure.code
        if self.is_draining:
            return "draining"
        if trio.current_time() - self.written_at > WRITTEN_SECONDS:
            return "the database cannot be written"
        return None
