"""Options that commands share, and how a command finds its database: a flag, the environment, or the running instance."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import trio
import typer

from core.errors import FlorinError, InvalidId
from core.ids import MERCHANT, PSP_ACCOUNT, MerchantId, PspAccountId, decode_id
from server.db.connection import Connection, open_session
from server.db.roles import Role
from server.process.instance import Running, running_file
from server.settings import default_data_directory, environment

T = TypeVar("T")


class Mode(StrEnum):
    """Test and live share no key, wallet or PSP account."""

    TEST = "test"
    LIVE = "live"


DataDirectory = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data directory. Default: /var/lib/florin as root, else ~/.local/share/florin."),
]
MerchantText = Annotated[str, typer.Argument(help="The merchant's id, mer_…", metavar="MERCHANT")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="PostgreSQL 15 or newer. Default: FLORIN_DATABASE_URL, else that of the running instance.",
        show_default=False,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        help="The key that seals secrets. Default: FLORIN_KEY_FILE, else that of the running instance.",
        show_default=False,
    ),
]


class NoRunningInstance(FlorinError):
    """The command needs a running instance or an address."""

    code = "nothing_runs"


def data_directory(given: Path | None) -> Path:
    """The data directory, as an absolute path."""
    if given == Path():
        raise NoRunningInstance("--data-dir is empty: name a directory")
    return (given or default_data_directory()).expanduser().absolute()


def running_instance(directory: Path | None) -> Running:
    """The running instance of this data directory. Raises `NoRunningInstance`."""
    path = running_file(data_directory(directory))
    try:
        running = msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        raise NoRunningInstance(
            f"no Florin is running on {path.parent}: start one with `florin up`, or give its --data-dir or a --database-url"
        ) from None
    if not Path(f"/proc/{running.pid}").exists():
        raise NoRunningInstance(f"the Florin on {path.parent} has stopped: start it again with `florin up`")
    return running


def find_database(directory: Path | None, database_url: str | None) -> str:
    """The database to use: the flag, else the instance of the given directory, else the environment, else the instance of the
    default directory. Raises `NoRunningInstance`.
    """
    if database_url or directory is not None:
        return database_url or running_instance(directory).database_url
    return environment("DATABASE_URL") or running_instance(None).database_url


def find_key_file(directory: Path | None, key_file: Path | None) -> Path:
    """The sealing key to use, found like the database. Raises `NoRunningInstance`."""
    if key_file or directory is not None:
        return key_file or Path(running_instance(directory).key_file)
    return Path(environment("KEY_FILE") or running_instance(None).key_file)


def with_database(url: str, work: Callable[[Connection], Awaitable[T]], *, role: Role | None = Role.CONSOLE) -> T:
    """Run `work` on a connection of its own, as a role; None means the login user."""

    async def run() -> T:
        async with open_session(url, role=role) as connection:
            return await work(connection)

    return trio.run(run)


def merchant_id_of(text: str) -> MerchantId:
    """The merchant of an argument. Raises `InvalidId`."""
    try:
        return MerchantId(decode_id(MERCHANT, text))
    except InvalidId as error:
        raise InvalidId(f"{text!r} is not a merchant: {error}") from error


def psp_account_id_of(text: str) -> PspAccountId:
    """The PSP account of an argument. Raises `InvalidId`."""
    try:
        return PspAccountId(decode_id(PSP_ACCOUNT, text))
    except InvalidId as error:
        raise InvalidId(f"{text!r} is not an account: {error}") from error
