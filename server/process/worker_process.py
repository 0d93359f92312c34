"""The process of a worker, as the supervisor starts it: its arguments, signals, link and exit code."""

import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import structlog
import trio

from core.errors import FlorinError, leaves
from server.api.problems import wire_problem
from server.child_process import allow_many_files
from server.clock import ClockSkewed
from server.concurrency.health import Health
from server.db.migrate import MigrationError
from server.http.asgi import Receive, Scope, Send
from server.http.refusal import Refusal, refuse
from server.process.worker import Place, open_worker
from server.process.worker_link import Link
from server.sealing import SealError
from server.settings import Settings, SettingsError, load_settings
from server.telemetry import configure_logs

EXIT_SETUP_FAILED = 78  # EX_CONFIG: a restart will not help
EXIT_NOT_NOW = 75  # EX_TEMPFAIL: a restart helps once the clocks agree
_log = structlog.get_logger()


async def unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    """The application that answers while there is no worker: 503 to everything."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close"})
        return
    await refuse(send, wire_problem(Refusal.OVERLOADED))


def settle_memory() -> None:
    """Take what the start has left out of the garbage collector's work, and let it look less often at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def serve(settings: Settings, sockets: Sequence[socket.socket], slot: int, link: Link, place: Place) -> None:
    """Serve on the socket of a slot until SIGTERM or SIGINT; the others' are adopted when the supervisor says so.

    SIGINT means at once, without lingering. Raises `ClockSkewed` if the clocks have come to differ too much.
    """
    async with trio.open_nursery() as life:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with open_worker(settings, sockets[slot], place=place) as (contexts, listener):
                settle_memory()
                link.tell("ready")
                life.start_soon(link.keep_telling)
                life.start_soon(
                    link.obey, lambda other: listener.adopt(sockets[other]), lambda other: listener.release(sockets[other])
                )
                await _until_told_to_end(signals, contexts.health)
                link.tell("ending")
        life.cancel_scope.cancel()
    if contexts.health.failure is not None:
        raise contexts.health.failure


async def _until_told_to_end(signals: AsyncIterator[int], health: Health) -> None:
    async with trio.open_nursery() as nursery:

        async def end_on_failure() -> None:
            await health.failed.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_on_failure)
        async for number in signals:
            health.is_hurried = number == signal.SIGINT
            break
        nursery.cancel_scope.cancel()


def main(worker_id: str, predecessor: str, link_descriptor: str, slot: str, *listening_descriptors: str) -> int:
    """Run a worker process of the supervisor, which passes the listening sockets and its link. Returns the exit code."""
    try:
        settings = load_settings()
    except SettingsError as error:
        configure_logs("info")
        _log.error("the worker cannot run", errors=[str(error)])
        return EXIT_SETUP_FAILED
    configure_logs(settings.log_level)
    allow_many_files()
    by_descriptor = {one: socket.socket(fileno=int(one)) for one in dict.fromkeys(listening_descriptors)}
    sockets = [by_descriptor[one] for one in listening_descriptors]
    link = Link(socket.socket(fileno=int(link_descriptor)))
    place = Place(UUID(worker_id), UUID(predecessor) if predecessor != "-" else None)
    try:
        trio.run(serve, settings, sockets, int(slot), link, place)
    except (FlorinError, BaseExceptionGroup) as error:
        group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
        failures, rest = group.split(FlorinError)
        if rest is not None or failures is None:
            raise
        _log.error("the worker cannot run", errors=[str(error) for error in leaves(failures)])
        if failures.subgroup((MigrationError, SealError, SettingsError)) is not None:
            return EXIT_SETUP_FAILED
        return EXIT_NOT_NOW if failures.subgroup(ClockSkewed) is not None else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
