"""Other projects' programs as processes on loopback."""

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import trio

from server import child_process
from tests.support.florin import eventually


@asynccontextmanager
async def process(*command: str, url: str, **kwargs: Any) -> AsyncIterator[None]:
    """A counterparty's process, once it answers."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, **kwargs)  # noqa: ASYNC220 - it outlives this call
    try:
        async with httpx2.AsyncClient() as http:

            async def answers() -> bool:
                try:
                    return bool((await http.get(url)).status_code)
                except httpx2.TransportError:
                    return False

            await eventually(answers)
        yield
    finally:
        with trio.move_on_after(10, shield=True):
            await child_process.stop(child, first=signal.SIGTERM, seconds=5)
