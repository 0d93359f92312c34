"""The command `florin`. Bad input gets one clear line that says what to do; every command can be interrupted."""

import sys

import typer

from core.errors import FlorinError, leaves
from server.cli import doctor, explain, haproxy, merchant, migrate, serve, smoke, up

app = typer.Typer(
    name="florin",
    help="A payment server: takes payments, keeps the ledger and the wallets, tells merchants.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.command)
app.command("serve")(serve.command)
app.command("migrate")(migrate.command)
app.add_typer(merchant.app, name="merchant")
app.command("smoke")(smoke.command)
app.command("explain")(explain.command)
app.command("doctor")(doctor.command)
app.command("haproxy")(haproxy.command)


def main() -> None:
    """Run the command; failures of ours become one line on standard error and exit code 1."""
    try:
        app()
    except FlorinError as error:
        fail([error])
    except BaseExceptionGroup as group:
        errors = leaves(group)
        if all(isinstance(error, KeyboardInterrupt) for error in errors):
            sys.exit(130)
        if not all(isinstance(error, FlorinError) for error in errors):
            raise
        fail(errors)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(errors: list[BaseException]) -> None:
    """Say what went wrong and exit."""
    for text in dict.fromkeys(str(error) for error in errors):
        print(f"florin: {text}", file=sys.stderr)
    sys.exit(1)
