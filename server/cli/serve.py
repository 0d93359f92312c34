"""`florin serve`: the workers alone, for production: against a PostgreSQL that is there, without sandbox or demo."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import trio
import typer

from server.cli.connect import open_connection
from server.db.migrate import require_current
from server.http.listener import bind
from server.instance import InstanceError
from server.sealing import Sealer
from server.settings import API_PORT, Settings
from server.supervisor import Supervisor
from server.telemetry import configure_logs


def command(
    database_url: Annotated[
        str, typer.Option("--database-url", envvar="FLORIN_DATABASE_URL", help="PostgreSQL 15 or newer, migrated.")
    ],
    key_file: Annotated[Path, typer.Option("--key-file", envvar="FLORIN_KEY_FILE", help="The key that seals secrets at rest.")],
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="How many workers. Default: one per core.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = API_PORT,
    port_per_worker: Annotated[
        bool,
        typer.Option("--port-per-worker", help="Give each worker a port of its own, counting up, for a load balancer."),
    ] = False,
) -> None:
    """Run the workers until SIGTERM or Ctrl-C."""
    count = workers or len(os.sched_getaffinity(0))
    settings = Settings(database_url=database_url, key_file=key_file)
    configure_logs(settings.log_level)
    environment = {**os.environ, "FLORIN_DATABASE_URL": database_url, "FLORIN_KEY_FILE": str(key_file.absolute())}
    with ExitStack() as stack:
        sockets = []
        for number in range(count):
            wanted = port + number if port_per_worker else port
            try:
                sockets.append(stack.enter_context(bind(host, wanted, reuse_port=not port_per_worker)))
            except OSError as error:
                raise InstanceError(f"cannot listen on {host}:{wanted}: {error.strerror}. Choose another with --port") from error
        supervisor = Supervisor(sockets, environment=environment, drain_seconds=settings.drain_seconds)
        trio.run(_run, supervisor, settings)


async def _run(supervisor: Supervisor, settings: Settings) -> None:
    Sealer.from_file(settings.key_file)
    async with open_connection(settings.database_url) as connection:
        await require_current(connection)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
