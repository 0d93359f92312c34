"""The command `florin`. Bad input gets one clear line that says what to do; every command can be interrupted."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from core.errors import FlorinError, leaves
from server.cli import alert, dlq, doctor, explain, haproxy, migrate, serve, smoke, up
from server.cli.batch import commands as batch
from server.cli.doctor import NotChecked
from server.cli.events import listen, trigger
from server.cli.ledger import payout, receipt, wallet
from server.cli.merchants import merchant
from server.cli.psp import commands as psp

app = typer.Typer(
    name="florin",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.command)
app.command("serve")(serve.command)
app.command("migrate")(migrate.command)
app.add_typer(merchant.app, name="merchant")
app.add_typer(psp.app, name="psp")
app.add_typer(payout.app, name="payout")
app.add_typer(wallet.app, name="wallet")
app.add_typer(receipt.app, name="receipt")
app.add_typer(dlq.app, name="dlq")
app.add_typer(batch.app, name="batch")
app.add_typer(alert.app, name="alert")
app.command("listen")(listen.command)
app.command("trigger")(trigger.command)
app.command("smoke")(smoke.command)
app.command("explain")(explain.command)
app.command("doctor")(doctor.command)
app.command("haproxy")(haproxy.command)


@app.command(
    "bench",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure a Florin under load, beside its peers: `florin bench --help`."""
    try:
        from bench.__main__ import main as laboratory
    except ModuleNotFoundError as error:
        raise FlorinError(f"the laboratory needs {error.name}: pip install 'florin[bench]'") from error
    laboratory(context.args)


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context, show: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False
) -> None:
    """A payment server: takes payments, keeps the ledger and the wallets, tells merchants."""
    if show:
        typer.echo(f"florin {metadata.version('florin')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command; failures of ours become one line on standard error and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except (FlorinError, KeyboardInterrupt, BrokenPipeError) as error:
        end([error])
        raise
    except BaseExceptionGroup as group:
        end(leaves(group))
        raise


def end(errors: list[BaseException]) -> None:
    """Exit as befits what a command raised; returns only where that is a defect of ours, which deserves its traceback."""
    if all(isinstance(error, FlorinError) for error in errors):
        fail([error for error in errors if isinstance(error, FlorinError)])
    for error in errors:
        if isinstance(error, SystemExit):
            raise error
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        if isinstance(error, BrokenPipeError):  # whoever read our output has left; Python must not try to flush it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


def fail(errors: Sequence[FlorinError]) -> NoReturn:
    """Say what went wrong and exit: with 2 where a check could not be made at all, else 1."""
    for text in dict.fromkeys(str(error) for error in errors):
        print("florin: " + "; ".join(text.split("\n")), file=sys.stderr)
    sys.exit(2 if any(isinstance(error, NotChecked) for error in errors) else 1)
