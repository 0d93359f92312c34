"""Ending on request: Ctrl-C, SIGTERM, or the terminal that is closed. Every further signal is taken and changes nothing."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def stop_on_signal() -> AsyncIterator[trio.Event]:
    """A block within which signals set an event. At its end everything has been stopped, so only then do they work as usual."""
    asked = trio.Event()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:

        async def listen() -> None:
            async for _ in signals:
                asked.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            yield asked
            nursery.cancel_scope.cancel()
