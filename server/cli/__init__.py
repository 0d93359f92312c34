"""The command `florin`. Bad input gets one clear line that says what to do; every command can be interrupted.

A command is imported when it runs, so that `--help` and `--version` answer at once. What `florin --help` says of each stands in
`COMMANDS`, and a test holds it to what the command says of itself.
"""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from core.errors import FlorinError, NotChecked, leaves

if TYPE_CHECKING:
    from typer._click import Command, Context


class Entry(NamedTuple):
    """Where a command stands: a function `command`, or a typer `app` of several."""

    module: str
    summary: str


COMMANDS = {
    "up": Entry("up", "Start PostgreSQL, the sandbox PSP, a demo shop and the workers; Ctrl-C stops them all."),
    "serve": Entry("serve", "Run the workers until SIGTERM or Ctrl-C."),
    "migrate": Entry("migrate", "Apply the migrations that the database lacks."),
    "listen": Entry(
        "events.listen", "Print events as they happen, until Ctrl-C; with --forward, also send them to a program of yours."
    ),
    "trigger": Entry("events.trigger", "Make an event happen to the demo merchant of the instance that runs."),
    "smoke": Entry("smoke", "Take one payment of each outcome and check every promise; exit code 0 only if all is well."),
    "explain": Entry("explain", "Show all that happened to a payment: requests, the PSP, ledger, events and deliveries."),
    "doctor": Entry("doctor", "Check every promise; prints offending rows."),
    "haproxy": Entry("haproxy", "Print a configuration for HAProxy."),
    "bench": Entry("bench", "Measure a Florin under load, beside its peers: `florin bench --help`."),
    "merchant": Entry("merchants.merchant", "Add and list merchants, add and revoke their API keys."),
    "psp": Entry("psp.commands", "Accounts at payment service providers: add, limit, stop and route."),
    "payout": Entry("ledger.payout", "Ask for, approve and end payouts to merchants' banks."),
    "wallet": Entry("ledger.wallet", "Show wallets, write statements, rebuild wallets from the ledger."),
    "receipt": Entry("ledger.receipt", "Verify receipts, offline."),
    "dlq": Entry("dlq", "Dead letters: list, show, retry, drop."),
    "batch": Entry("batch.commands", "Batches: carry out a file of payments under one deadline, and resume."),
    "alert": Entry("alert", "Alerts: list them, and send one to see that it arrives."),
}
"""In the order of `florin --help`."""


def load(name: str) -> "Command":
    """The command itself. Raises `KeyError` for one that there is not."""
    module = import_module(f"server.cli.{COMMANDS[name].module}")
    parent = typer.Typer(add_completion=False)
    if hasattr(module, "app"):
        parent.add_typer(module.app, name=name)
    else:
        parent.command(name, **getattr(module, "OPTIONS", {}))(module.command)
    found = typer.main.get_command(parent)
    return found.commands[name] if isinstance(found, TyperGroup) else found


class Commands(TyperGroup):
    """Shows every command, and imports the one that is asked for."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.summary))

    def resolve_command(self, ctx: "Context", args: list[str]) -> "tuple[str | None, Command | None, list[str]]":
        """The command that is to run."""
        if args and args[0] in COMMANDS:
            return args[0], load(args[0]), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(name="florin", cls=Commands, add_completion=False, pretty_exceptions_enable=False)


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
