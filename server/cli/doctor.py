"""`florin doctor`: checks every promise on a database, read-only, while it is in use."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core.batch import BATCH
from core.errors import FlorinError, NotChecked
from core.ids import ENDPOINT, MERCHANT, OPERATION, PAYMENT, PAYOUT, PSP_ACCOUNT, REFUND, encode_id
from server.cli.options import DatabaseUrl, DataDirectory, find_database, with_database
from server.cli.output import Output, shown
from server.db.doctor.check import Promise
from server.db.doctor.run import CHECKS, ROWS_MAX, Observe, Violation, broken_promises
from server.db.roles import Role

_console = Output(goes_on_unread=True)


def command(database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Check every promise and print offending rows. Exit code 0: all kept, 1: broken, 2: could not be checked."""
    try:
        url = find_database(data_dir, database_url)  # which may ask, before anything is drawn
        with _progress() as observe:
            violations = with_database(url, partial(broken_promises, observe=observe), role=Role.READ)
    except (FlorinError, BaseExceptionGroup) as error:
        raise NotChecked(f"the promises could not be checked: {error}") from error
    print_diagnosis(violations, _console)
    if violations:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Observe]:
    """A progress bar on a terminal's standard error, which is gone at the end."""
    columns = (TextColumn("{task.completed:>2}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    bar.disable = not sys.stderr.isatty()
    with bar:
        task = bar.add_task("", total=len(CHECKS), completed=-1)
        yield lambda check: bar.update(task, advance=1, description=check.name)


def print_diagnosis(violations: list[Violation], console: Output) -> None:
    """Print one line per check, and the rows that break it."""
    broken = {violation.check.name: violation for violation in violations}
    for check in sorted(CHECKS, key=lambda check: list(Promise).index(check.promise)):
        violation = broken.get(check.name)
        console.print(f"{'BROKEN' if violation else 'kept  '}  {check.promise:<20}  {check.name}")
        for row in violation.rows if violation else ():
            fields = zip(violation.columns if violation else (), row, strict=True)
            console.print("          " + ", ".join(f"{name}={shown(_named(name, value))}" for name, value in fields))
        if violation and len(violation.rows) == ROWS_MAX:
            console.print(f"          (the first {ROWS_MAX} rows)")
    verdict = f"{len(violations)} of {len(CHECKS)} checks found broken promises" if violations else "all promises are kept"
    console.print(verdict)


def _named(column: str, value: object) -> object:
    """A value as it is known outside: an id with the prefix of its kind, if the column tells it."""
    prefix = _PREFIXES.get(column)
    return encode_id(prefix, value) if prefix is not None and isinstance(value, UUID) else value


_PREFIXES = {
    "merchant_id": MERCHANT,
    "payment_id": PAYMENT,
    "refund_id": REFUND,
    "endpoint_id": ENDPOINT,
    "psp_account_id": PSP_ACCOUNT,
    "payout_id": PAYOUT,
    "batch_id": BATCH,
    "operation_id": OPERATION,
}
