"""`florin doctor`: checks every promise on a database, read-only, while it is in use."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Annotated
from uuid import UUID

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core.batch import BATCH
from core.errors import FlorinError, NotChecked
from core.ids import ENDPOINT, MERCHANT, OPERATION, PAYMENT, PAYOUT, PSP_ACCOUNT, REFUND, encode_id
from server.cli.options import DatabaseUrl, DataDirectory, find_database, with_database
from server.cli.output import Output, json_shown, shown
from server.cli.since import Since, parse_since
from server.clock import utc_now
from server.db.doctor.check import Check, Promise
from server.db.doctor.notices import Notice, notices
from server.db.doctor.run import CHECKS, ROWS_MAX, Observe, Violation, broken_promises, checks_of, estimated_seconds
from server.db.roles import Role

_console = Output(goes_on_unread=True)
LONG_SECONDS = 10.0


def command(
    since: Since = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Check every promise and print offending rows. Exit code 0: all kept, 1: broken, 2: could not be checked.

    With --since only payments made since then are looked at, by the checks that judge payments one by one.
    """
    age = parse_since(since)
    begin = utc_now() - age if age is not None else None
    try:
        url = find_database(data_dir, database_url)  # which may ask, before anything is drawn
        if begin is None:
            _announce(with_database(url, estimated_seconds, role=Role.READ))
        found = with_database(url, lambda connection: notices(connection, now=utc_now()), role=Role.READ)
        with _progress(len(checks_of(begin))) as observe:
            violations = with_database(url, partial(broken_promises, observe=observe, since=begin), role=Role.READ)
    except (FlorinError, BaseExceptionGroup) as error:
        raise NotChecked(f"the promises could not be checked: {error}") from error
    if as_json:
        _print_json(violations, found, begin)
    else:
        print_diagnosis(violations, _console, checks=checks_of(begin))
        for notice in found:
            _console.print(f"notice: {shown(notice.title)}: {notice.advice}")
    if violations:
        raise typer.Exit(1)


def _announce(seconds: float) -> None:
    """Say how long it will take, if that is long."""
    if seconds > LONG_SECONDS:
        said = f"about {seconds / 60:.0f} minutes" if seconds > 120 else f"about {seconds:.0f} s"
        print(f"florin: this takes {said}; --since 24h looks at recent payments only", file=sys.stderr)


def _print_json(violations: Sequence[Violation], found: Sequence[Notice], since: datetime | None) -> None:
    broken = {violation.check.name: violation for violation in violations}
    for check in checks_of(since):
        violation = broken.get(check.name)
        rows = [] if violation is None else [dict(zip(violation.columns, map(str, row), strict=True)) for row in violation.rows]
        document = {"promise": check.promise.value, "check": check.name, "kept": violation is None, "rows": rows}
        _console.print(json_shown(msgspec.json.encode(document).decode()))
    for notice in found:
        document = {"notice": notice.title, "advice": notice.advice}
        _console.print(json_shown(msgspec.json.encode(document).decode()))


@contextmanager
def _progress(total: int) -> Iterator[Observe]:
    """A progress bar on a terminal's standard error, which is gone at the end."""
    columns = (TextColumn("{task.completed:>2}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    bar.disable = not sys.stderr.isatty()
    with bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda check: bar.update(task, advance=1, description=check.name)


def print_diagnosis(violations: Sequence[Violation], console: Output, *, checks: Sequence[Check] = CHECKS) -> None:
    """Print one line per check, and the rows that break it."""
    broken = {violation.check.name: violation for violation in violations}
    for check in sorted(checks, key=lambda check: list(Promise).index(check.promise)):
        violation = broken.get(check.name)
        console.print(f"{'BROKEN' if violation else 'kept  '}  {check.promise:<20}  {check.name}")
        for row in violation.rows if violation else ():
            fields = zip(violation.columns if violation else (), row, strict=True)
            console.print("          " + ", ".join(f"{name}={shown(_named(name, value))}" for name, value in fields))
        if violation and len(violation.rows) == ROWS_MAX:
            console.print(f"          (the first {ROWS_MAX} rows)")
    verdict = f"{len(violations)} of {len(checks)} checks found broken promises" if violations else "all promises are kept"
    if len(checks) < len(CHECKS):
        verdict += f"; {len(CHECKS) - len(checks)} checks need the whole database and were not made"
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
