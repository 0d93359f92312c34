"""`florin migrate`: brings a database up to date. Safe while workers run, and when run twice at once."""

from typing import Annotated

import typer

from server.cli.options import DatabaseUrl, DataDirectory, find_database, with_database
from server.cli.output import Output, Rows
from server.db.migrate import migrate, status

_console = Output()


def command(
    show: Annotated[bool, typer.Option("--status", help="Only show the migrations; exit code 1 if one is pending.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Apply pending database migrations."""
    url = find_database(data_dir, database_url)
    if show:
        _show(url)
        return
    done = with_database(url, migrate, role=None)
    for name in done:
        _console.print(f"applied {name}")
    if not done:
        _console.print("the database is up to date")


def _show(url: str) -> None:
    found = with_database(url, status, role=None)
    table = Rows("migration", "applied")
    for name, applied_at in found:
        table.add(name, applied_at.isoformat(timespec="seconds") if applied_at else "pending")
    _console.print(table)
    if any(applied_at is None for _, applied_at in found):
        raise typer.Exit(1)
