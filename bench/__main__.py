"""`python -m bench`: payments per second, and what one costs, on a Florin that is started for it and forgotten."""

import os
import platform
import tempfile
from pathlib import Path
from typing import Annotated

import trio
import typer
from rich.console import Console

from bench.checkout import Result, run
from bench.measure import percentile
from server.cli.doctor import print_diagnosis
from server.instance import Options, open_instance
from server.telemetry import configure_logs

_console = Console(highlight=False, soft_wrap=True)


def main(
    payments: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many payments to measure.")] = 5_000,
    customers: Annotated[int, typer.Option(min=1, max=1_000, help="How many customers at a time.")] = 64,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many workers.")] = 1,
    warm_up: Annotated[int, typer.Option(min=0, max=100_000, help="Payments before the measurement.")] = 500,
    seconds: Annotated[float, typer.Option(min=1, max=3_600, help="The longest that load is offered.")] = 60,
) -> None:
    """Create and settle payments as fast as they go, closed loop, over loopback."""
    configure_logs("warning")
    with tempfile.TemporaryDirectory(prefix="florin-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        options = Options(
            data_directory=Path(name),
            workers=workers,
            port=0,
            psp_port=0,
            shop_port=0,
            settings={"FLORIN_LOG_LEVEL": "warning"},
        )
        result = trio.run(_run, options, customers, payments, seconds, warm_up)
    _print(result, customers=customers, workers=workers)
    if result.violations or result.errors:
        raise typer.Exit(1)


async def _run(options: Options, customers: int, payments: int, seconds: float, warm_up: int) -> Result:
    async with open_instance(options) as instance:
        return await run(instance, customers=customers, payments_max=payments, seconds_max=seconds, warm_up=warm_up)


def _print(result: Result, *, customers: int, workers: int) -> None:
    rate = result.payments / result.settled_seconds if result.settled_seconds else 0.0
    _console.print(
        f"{result.payments} payments created, paid, settled and notified in {result.settled_seconds:.2f} s: "
        f"{rate:,.0f} payments/s ({customers} customers, {workers} worker(s), {result.errors} errors)"
    )
    _console.print(
        f"{len(os.sched_getaffinity(0))} cores, Linux {platform.release()}, Python {platform.python_version()}, fsync on; "
        "worker, PostgreSQL, PSP, shop and load generator share the cores"
    )
    for name, values in (("create", result.create_ms), ("pay", result.pay_ms)):
        shown = ", ".join(f"p{percent} {percentile(values, percent / 100):.1f}" for percent in (50, 90, 99))
        _console.print(f"{name:<7} ms: {shown}")
    for name, seconds in result.cpu_seconds.items():
        _console.print(f"CPU µs per payment, {name}: {seconds / max(result.payments, 1) * 1e6:,.0f}")
    if result.violations:
        print_diagnosis(result.violations, _console)
    else:
        _console.print("all promises are kept")


if __name__ == "__main__":
    typer.run(main)
