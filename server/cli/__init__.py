"""The command `florin`. Bad input gets one clear line that says what to do; every command can be interrupted.

A command is imported when it runs, so `--help` and `--version` answer at once. `COMMANDS` repeats each command's own help text,
and a test compares the two.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from core.errors import FlorinError, NotChecked, Unprocessable, leaves
from server.cli.groups import Group

if TYPE_CHECKING:
    from typer._click import Command, Context


class Entry(NamedTuple):
    """The module of a command, which has a function `command` or a typer `app` of several."""

    module: str
    summary: str


COMMANDS = {
    "up": Entry("up", "Start PostgreSQL, the sandbox PSP, a demo shop and the workers; Ctrl-C stops them all."),
    "init": Entry(
        "deploy.init", "Make a directory with all that a production instance needs: key, roles, settings and systemd unit."
    ),
    "key": Entry("deploy.key", "Make the key that seals secrets at rest."),
    "migrate": Entry("deploy.migrate", "Apply pending database migrations."),
    "serve": Entry("deploy.serve", "Run the workers until SIGTERM or Ctrl-C."),
    "listen": Entry(
        "events.listen", "Print events as they happen, until Ctrl-C; with --forward, also send them to your program."
    ),
    "trigger": Entry("events.trigger", "Make an event happen for the demo merchant of the running instance."),
    "smoke": Entry("smoke", "Take six typical payments and check every promise; exit code 0 only if everything passes."),
    "explain": Entry("explain", "Show everything that happened to a payment: requests, the PSP, ledger, events and deliveries."),
    "doctor": Entry("doctor", "Check every promise and print offending rows."),
    "psql": Entry("psql", "Open the database with psql. Its password is neither shown nor visible to other users."),
    "haproxy": Entry("deploy.haproxy", "Print a configuration for HAProxy."),
    "bench": Entry("bench", "Measure a Florin under load, alone or beside its peers: see `florin bench --help`."),
    "merchant": Entry("merchants.merchant", "Add, list and show merchants, set their terms, and manage their API keys."),
    "operator": Entry("operators.commands", "Add operators, give them roles, log in and out."),
    "finding": Entry("payments.finding", "List findings, take, explain and resolve them."),
    "payment": Entry("payments.payment", "Say what became of a payment that the PSP has not told; refund one."),
    "suspense": Entry("ledger.suspense", "Move money that matched no payment to where it belongs."),
    "adjust": Entry("ledger.adjust", "Credit or debit a merchant's wallet, after another operator has approved it."),
    "request": Entry("operators.requests", "List, approve and withdraw what operators have asked for."),
    "audit": Entry("operators.audit", "Show what operators have done."),
    "psp": Entry("psp.commands", "Manage accounts at payment service providers: add, limit, stop and route."),
    "payout": Entry("ledger.payout", "Request, approve and end payouts to merchants' banks."),
    "wallet": Entry("ledger.wallet", "Show wallets, write account statements, rebuild wallets from the ledger."),
    "receipt": Entry("ledger.receipt", "Verify receipts offline."),
    "dlq": Entry("dlq", "List, show, retry and drop dead letters."),
    "batch": Entry("batch.commands", "Run a file of payments as a batch under one deadline, resume it, list and stop batches."),
    "alert": Entry("alert", "List alerts, and send one to see that it arrives."),
}
"""In the order of `florin --help`."""


def load(name: str) -> "Command":
    """Import a command. Raises `KeyError` for an unknown one."""
    module = import_module(f"server.cli.{COMMANDS[name].module}")
    parent = typer.Typer(add_completion=False, rich_markup_mode=None)
    if hasattr(module, "app"):
        parent.add_typer(module.app, name=name)
    else:
        parent.command(name, **getattr(module, "OPTIONS", {}))(module.command)
    found = typer.main.get_command(parent)
    return found.commands[name] if isinstance(found, TyperGroup) else found


class Commands(Group):
    """Lists every command, and imports the one that runs."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.summary))

    def resolve_command(self, ctx: "Context", args: list[str]) -> "tuple[str | None, Command | None, list[str]]":
        """The command to run."""
        if args and args[0] in COMMANDS:
            return args[0], load(args[0]), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(name="florin", cls=Commands, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def begin(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            envvar="FLORIN_SETTINGS",
            help="A file of settings, as `florin init` makes. Variables take precedence.",
        ),
    ] = None,
) -> None:
    """A payment server: takes payments, keeps the ledger and the wallets, notifies merchants."""
    if show:
        typer.echo(f"florin {metadata.version('florin')}")
        raise typer.Exit
    if settings is not None or any(name.startswith("FLORIN_") for name in os.environ):
        from server.settings import read_settings_file, require_known_variables  # `--help` needs no pydantic

        if settings is not None:
            read_settings_file(settings)
        require_known_variables()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command. A Florin error becomes one line on standard error and exit code 1, and so does one of the system."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        require_utf8(sys.argv)
        try:
            app()
        finally:
            sys.stdout.flush()  # at the interpreter's end a failure would be a traceback
    except (FlorinError, KeyboardInterrupt, OSError) as error:
        end([error])
        raise
    except BaseExceptionGroup as group:
        end(leaves(group))
        raise


def require_utf8(arguments: Sequence[str]) -> None:
    """Raise `Unprocessable` for one that is not UTF-8: it names nothing that the database could hold."""
    for number, one in enumerate(arguments[1:], start=1):
        try:
            one.encode()
        except UnicodeEncodeError as error:
            raise Unprocessable(f"argument {number}, {one!a}, is not UTF-8") from error


def end(errors: list[BaseException]) -> None:
    """Exit with the code for an exception. Returns only for a bug, which deserves its traceback."""
    if all(isinstance(error, FlorinError) for error in errors):
        fail([error for error in errors if isinstance(error, FlorinError)])
    for error in errors:
        if isinstance(error, SystemExit):
            raise error
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        if isinstance(error, BrokenPipeError):  # the reader of our output has left
            forget_output()
            sys.exit(1)
    systems = [error for error in errors if isinstance(error, OSError)]
    if systems and len(systems) == len(errors):
        forget_output()
        fail([FlorinError(_explained(error)) for error in systems])


def forget_output() -> None:
    """Print to nowhere from now on: Python would try again, at its end, to write what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explained(error: OSError) -> str:
    """An error of the system in a line, with what to do about it."""
    said = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"cannot write any more: {said}; free some space, or choose another place, and start again" if is_full else said


def fail(errors: Sequence[FlorinError]) -> NoReturn:
    """Print an error and exit: with 2 if a check could not be made at all, else with 1."""
    from server.cli.output import shown  # not at the start: `--help` needs no rich

    for text in dict.fromkeys(str(error) for error in errors):
        print("florin: " + "; ".join(shown(line.strip()) for line in text.split("\n")), file=sys.stderr)
    sys.exit(2 if any(isinstance(error, NotChecked) for error in errors) else 1)
