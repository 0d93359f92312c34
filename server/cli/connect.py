"""Options that commands share, and how a command finds its database: a flag, the environment, or the instance that runs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import trio
import typer

from core.errors import FlorinError
from server.db.connection import Connection
from server.instance import Running, running_file
from server.settings import default_data_directory

T = TypeVar("T")

DataDirectory = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where data lives. Default: /var/lib/florin as root, else ~/.local/share/florin."),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="FLORIN_DATABASE_URL",
        help="PostgreSQL 15 or newer. Default: that of the instance that runs.",
        show_default=False,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        envvar="FLORIN_KEY_FILE",
        help="The key that seals secrets. Default: that of the instance that runs.",
        show_default=False,
    ),
]


class NothingRuns(FlorinError):
    """The command needs a running instance or an address."""

    code = "nothing_runs"


def data_directory(given: Path | None) -> Path:
    """The data directory, as an absolute path."""
    return (given or default_data_directory()).expanduser().absolute()


def running_instance(directory: Path | None) -> Running:
    """The instance that runs on this data directory. Raises `NothingRuns`."""
    path = running_file(data_directory(directory))
    try:
        running = msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        raise NothingRuns(f"no Florin runs on {path.parent}: start one with `florin up`, or name a database") from None
    if not Path(f"/proc/{running.pid}").exists():
        raise NothingRuns(f"the Florin on {path.parent} has ended: start it again with `florin up`")
    return running


def find_database(directory: Path | None, database_url: str | None) -> str:
    """The database to work on. Raises `NothingRuns`."""
    return database_url or running_instance(directory).database_url


def find_key_file(directory: Path | None, key_file: Path | None) -> Path:
    """The sealing key to work with. Raises `NothingRuns`."""
    return key_file or Path(running_instance(directory).key_file)


@asynccontextmanager
async def open_connection(url: str) -> AsyncIterator[Connection]:
    """A connection for one command."""
    connection = await Connection.open(url, application_name="florin command")
    try:
        yield connection
    finally:
        connection.discard()


def with_database(url: str, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run `work` on a connection of its own."""

    async def run() -> T:
        async with open_connection(url) as connection:
            return await work(connection)

    return trio.run(run)
