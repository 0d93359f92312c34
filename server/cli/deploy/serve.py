"""`florin serve`: the workers alone, for production, with an existing PostgreSQL and without sandbox or demo."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import trio
import typer

from server.cli.options import Host
from server.cli.output import Output
from server.cli.signals import stop_on_signal
from server.db.connection import open_session
from server.db.migrate import require_current
from server.db.roles import Role
from server.http.server.listener import bind_shared, bind_unix
from server.http.tls import server_tls
from server.process.instance import InstanceError, cannot_listen, require_own_secrets
from server.process.running import Running, announced
from server.process.supervisor import Supervisor
from server.process.worker import listener_options
from server.sealing import Sealer
from server.settings import API_PORT, Settings, SettingsError, load_settings
from server.telemetry import configure_logs

_console = Output()


def command(
    database_url: Annotated[
        str, typer.Option("--database-url", envvar="FLORIN_DATABASE_URL", help="PostgreSQL 15 or newer, migrated.")
    ],
    key_file: Annotated[Path, typer.Option("--key-file", envvar="FLORIN_KEY_FILE", help="The key that seals secrets at rest.")],
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Number of workers. Default: one per core.", show_default=False)
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = API_PORT,
    unix_socket: Annotated[
        Path | None, typer.Option("--unix-socket", help="Listen on this unix socket instead, for a proxy on this machine.")
    ] = None,
    port_per_worker: Annotated[
        bool,
        typer.Option("--port-per-worker", help="Give each worker its own port, counting up, for a load balancer."),
    ] = False,
    tls_cert: Annotated[
        str, typer.Option("--tls-cert", envvar="FLORIN_TLS_CERT", help="Serve TLS 1.3 with this certificate chain (PEM).")
    ] = "",
    tls_key: Annotated[str, typer.Option("--tls-key", envvar="FLORIN_TLS_KEY", help="The certificate's private key (PEM).")] = "",
) -> None:
    """Run the workers until SIGTERM or Ctrl-C."""
    if unix_socket is not None and port_per_worker:
        raise SettingsError("give either --unix-socket or --port-per-worker")
    count = workers or len(os.sched_getaffinity(0))
    settings = load_settings(database_url=database_url, key_file=key_file, tls_cert=tls_cert, tls_key=tls_key)
    _require_certificate(settings)
    configure_logs(settings.log_level)
    environment = {
        **os.environ,
        "FLORIN_DATABASE_URL": database_url,
        "FLORIN_KEY_FILE": str(key_file.absolute()),
        "FLORIN_TLS_CERT": tls_cert and str(Path(tls_cert).absolute()),
        "FLORIN_TLS_KEY": tls_key and str(Path(tls_key).absolute()),
    }
    last = f" to {port + count - 1}" if port_per_worker and count > 1 else ""
    where = (str(unix_socket) if unix_socket else f"{host}:{port}{last}") + (" with TLS" if tls_cert else "")
    with _sockets(host, port, count, unix_socket=unix_socket, port_per_worker=port_per_worker) as sockets:
        supervisor = Supervisor(
            sockets,
            environment=environment,
            drain_seconds=settings.linger_seconds + settings.drain_seconds,
            stand_in=listener_options(settings),
        )
        scheme = "https" if tls_cert else "http"
        ports = [f"{port + number}" for number in range(count if port_per_worker else 1)]
        urls = [f"unix:{unix_socket}"] if unix_socket else [f"{scheme}://{host}:{one}" for one in ports]
        running = Running(os.getpid(), urls, "", "", database_url, str(key_file.absolute()))
        trio.run(_run, supervisor, settings, where, running)


@contextmanager
def _sockets(
    host: str, port: int, count: int, *, unix_socket: Path | None, port_per_worker: bool
) -> Iterator[list[socket.socket]]:
    """The listening sockets of that many workers. Raises `InstanceError`."""
    with ExitStack() as stack:
        try:
            if unix_socket is not None:
                sockets = [stack.enter_context(bind_unix(str(unix_socket)))] * count
                stack.callback(unix_socket.unlink, missing_ok=True)
            elif port_per_worker:
                sockets = [stack.enter_context(bind_shared(host, port + number, 1)[0]) for number in range(count)]
            else:
                sockets = [stack.enter_context(one) for one in bind_shared(host, port, count)]
        except OSError as error:
            if unix_socket is not None:
                raise InstanceError(f"cannot listen on {unix_socket}: {error.strerror or error}") from error
            raise InstanceError(cannot_listen(host, port, error, flag="--port")) from error
        yield sockets


def _require_certificate(settings: Settings) -> None:
    """Report a bad certificate now, in one line, instead of in every worker."""
    if settings.tls_cert:
        try:
            server_tls(settings.tls_cert, settings.tls_key)
        except OSError as error:  # ssl.SSLError is one
            raise SettingsError(f"cannot serve TLS (--tls-cert, --tls-key): {error}") from error


async def _run(supervisor: Supervisor, settings: Settings, where: str, running: Running) -> None:
    sealer = Sealer.from_file(settings.key_file)
    async with open_session(settings.database_url) as connection:  # as the login: before the first migration there is no role
        await require_current(connection)
    async with open_session(settings.database_url, role=Role.APP) as connection:
        await require_own_secrets(connection, sealer, key_file=str(settings.key_file))
    async with stop_on_signal() as asked, trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        _console.print(f"ready: {len(supervisor.pids)} worker(s) on {where}, pids {', '.join(map(str, supervisor.pids))}")
        with announced(running):
            await asked.wait()
        nursery.cancel_scope.cancel()
