"""`florin up`: everything on this machine with one command, for a first payment, development and tests."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import trio
import typer

from server.cli.options import DataDirectory, Host, data_directory
from server.cli.output import Output
from server.cli.signals import stop_on_signal
from server.db.conninfo import without_password
from server.process.instance import Instance, Options, open_instance
from server.settings import API_PORT, PSP_PORT, SHOP_PORT, SettingsError, environment, load_settings
from server.telemetry import configure_logs

INTERRUPTED = 130
_console = Output()


def command(
    data_dir: DataDirectory = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            envvar="FLORIN_DATABASE_URL",
            help="Use this PostgreSQL (15 or newer) instead of the embedded one.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Number of workers. Default: one per core.", show_default=False)
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The API's port; 0 means any free one.")] = API_PORT,
    psp_port: Annotated[int, typer.Option(min=0, max=65535, help="The sandbox PSP's port.")] = PSP_PORT,
    shop_port: Annotated[int, typer.Option(min=0, max=65535, help="The demo shop's port.")] = SHOP_PORT,
    port_per_worker: Annotated[
        bool,
        typer.Option("--port-per-worker", help="Give each worker its own port, counting up, for a load balancer."),
    ] = False,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep data in a temporary directory and delete it at the end.")
    ] = False,
) -> None:
    """Start PostgreSQL, the sandbox PSP, a demo shop and the workers; Ctrl-C stops them all."""
    configure_logs("warning")
    os.umask(0o022)  # PostgreSQL may run as another user below the data directory; private files are created private
    # A bad setting is reported now, in one line, and not by every worker; the two required ones are known only later.
    settings = load_settings(database_url="not checked yet", key_file=Path("not looked at yet"))
    if settings.tls_cert:
        raise SettingsError("the demo shop speaks plain HTTP to the API: unset FLORIN_TLS_CERT, or use `florin serve`")
    with _directory(data_dir, ephemeral=ephemeral) as directory:
        options = Options(
            data_directory=directory,
            database_url=database_url,
            workers=workers or len(os.sched_getaffinity(0)),
            host=host,
            port=port,
            psp_port=psp_port,
            shop_port=shop_port,
            port_per_worker=port_per_worker,
            settings={} if environment("LOG_LEVEL") else {"FLORIN_LOG_LEVEL": "warning"},
        )
        if not trio.run(_run, options):
            raise typer.Exit(INTERRUPTED)


async def _run(options: Options) -> bool:
    """Run until asked to stop. Returns whether it had become ready by then."""
    is_ready = False
    async with stop_on_signal() as asked, trio.open_nursery() as nursery:

        async def end_when_asked() -> None:
            await asked.wait()
            _console.print("stopping: running requests are finished first")
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_when_asked)
        is_new = not (options.data_directory / "postgres").exists() and options.database_url is None
        _console.print("starting" + (": setting up the database takes a moment" if is_new else ""))
        async with open_instance(options) as instance:
            _show(instance, options)
            is_ready = True
            await trio.sleep_forever()
    _console.print("stopped")
    return is_ready


def _show(instance: Instance, options: Options) -> None:
    """Print what runs where, and how to continue."""
    running = instance.running
    lines = {
        "API": ", ".join(running.api_urls),
        "demo shop": f"{running.shop_url}  <- open this in a browser and buy something",
        "sandbox PSP": running.psp_url,
        "API key": instance.demo.api_key,
        "webhooks go to": f"{running.shop_url}/webhooks  (received ones: {running.shop_url}/events)",
        "operators": "ada (admin) and grace (finance): florin operator login ada",
        "database": f"{without_password(running.database_url)}  (florin psql opens it)",
        "data": str(options.data_directory),
        "workers": f"{options.workers}, pids {', '.join(map(str, instance.supervisor.pids))}",
    }
    for name, value in lines.items():
        _console.print(f"{name:<15} {value}")
    _console.print("ready")


@contextmanager
def _directory(given: Path | None, *, ephemeral: bool) -> Iterator[Path]:
    if not ephemeral:
        yield data_directory(given)
        return
    with tempfile.TemporaryDirectory(prefix="florin-", dir=given, ignore_cleanup_errors=True) as directory:
        os.chmod(directory, 0o711)  # noqa: S103 - as root PostgreSQL runs as another user below it
        yield Path(directory)
