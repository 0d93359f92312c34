"""An epoll loop with handlers and timers, on which load generators and the stub PSP run.

A generator shares its machine with what it measures, so it has to be cheaper; nothing here allocates a task, a scope or a queue.
Invariants: timers fire in the order of their times, never early; `now` is read once per round; a handler that raises ends the
loop, because a broken generator measures nothing.
"""

import heapq
import select
import time
from collections.abc import Callable
from itertools import count

EVENTS_MAX = 1_024
Handler = Callable[[int], None]


class Loop:
    """Calls handlers with the event mask of their descriptor."""

    def __init__(self) -> None:
        self._poller = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._is_stopped = False
        self.now = time.monotonic()

    def watch(self, descriptor: int, handler: Handler, events: int = select.EPOLLIN) -> None:
        """Call the handler whenever the descriptor has one of these events."""
        if descriptor in self._handlers:
            self._poller.modify(descriptor, events)
        else:
            self._poller.register(descriptor, events)
        self._handlers[descriptor] = handler

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor, before it is closed."""
        if self._handlers.pop(descriptor, None) is not None:
            self._poller.unregister(descriptor)

    def call_at(self, at: float, callback: Callable[[], None]) -> None:
        """Call back at a time of `time.monotonic()`, or as soon after it as possible."""
        heapq.heappush(self._timers, (at, next(self._numbers), callback))

    def stop(self) -> None:
        """Return from `run` after this round."""
        self._is_stopped = True

    def run(self) -> None:
        """Serve events and timers until `stop`."""
        self._is_stopped = False
        timers, handlers, poller = self._timers, self._handlers, self._poller
        while not self._is_stopped:
            if timers:
                wait_seconds = timers[0][0] - time.monotonic()
                # epoll waits in whole milliseconds, which would make every arrival late; select takes microseconds
                if wait_seconds > 0:
                    select.select([poller], [], [], wait_seconds)
                ready = poller.poll(0, EVENTS_MAX)
            else:
                ready = poller.poll(None, EVENTS_MAX)
            self.now = time.monotonic()
            for descriptor, mask in ready:
                handler = handlers.get(descriptor)
                if handler is not None:
                    handler(mask)
            self.now = time.monotonic()
            # Timers that these set for now fire in the next round, after the sockets.
            due = []
            while timers and timers[0][0] <= self.now:
                due.append(heapq.heappop(timers)[2])
            for callback in due:
                callback()
