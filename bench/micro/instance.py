"""A Florin for a program that measures: one worker, PostgreSQL, the sandbox PSP; the doctor checks it at the end."""

from collections.abc import Awaitable, Callable

import trio
import typer

from bench.measure import scratch_directory
from server.child_process import allow_many_files
from server.cli.doctor import print_diagnosis
from server.cli.output import Output
from server.db.connection import open_session
from server.db.doctor.run import Violation, broken_promises
from server.process.instance import Instance, Options, open_instance
from server.telemetry import configure_logs

_console = Output()


def measure_instance(measure: Callable[[Instance], Awaitable[None]]) -> None:
    """Run `measure` on a temporary instance. Raises `typer.Exit` with 1 if a promise is broken."""
    configure_logs("error")
    allow_many_files()
    with scratch_directory() as directory:
        settings = {"FLORIN_LOG_LEVEL": "error"}
        options = Options(data_directory=directory, workers=1, port=0, psp_port=0, shop_port=0, settings=settings)
        violations = trio.run(_run, options, measure)
    if violations:
        print_diagnosis(violations, _console)
        raise typer.Exit(1)
    _console.print("all promises are kept")


async def _run(options: Options, measure: Callable[[Instance], Awaitable[None]]) -> list[Violation]:
    async with open_instance(options) as instance:
        await measure(instance)
        async with open_session(instance.database_url) as connection:
            return await broken_promises(connection)
