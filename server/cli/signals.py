"""Ends a command on Ctrl-C, SIGTERM or a closed terminal. Further signals have no effect."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def stop_on_signal() -> AsyncIterator[trio.Event]:
    """A block within which signals set an event. After it, when everything has been stopped, they work as usual again."""
    asked = trio.Event()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:

        async def listen() -> None:
            async for _ in signals:
                asked.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            yield asked
            nursery.cancel_scope.cancel()
