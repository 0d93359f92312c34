"""`florin migrate`: bring a database up to date. Safe to run while workers run, and twice at once."""

from rich.console import Console

from server.cli.connect import DatabaseUrl, DataDirectory, find_database, with_database
from server.db.migrate import migrate

_console = Console(highlight=False)


def command(database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Apply the migrations that the database lacks."""
    done = with_database(find_database(data_dir, database_url), migrate)
    for name in done:
        _console.print(f"applied {name}")
    if not done:
        _console.print("the database is up to date")
