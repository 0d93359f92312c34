"""Options that commands share, and how a command finds its database: a flag, the environment, or the running instance."""

import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import trio
import typer

from core.errors import InvalidId, NotFound
from core.ids import MERCHANT, PSP_ACCOUNT, MerchantId, PspAccountId, decode_id, encode_id
from server.db.connection import Connection, open_session
from server.db.merchants.merchants import Merchant, find_merchant
from server.db.roles import Role
from server.process.demo import Demo, load_or_generate
from server.process.running import NoRunningInstance, Running, read_running, running_file, running_instances
from server.settings import default_data_directory, environment

T = TypeVar("T")


class Mode(StrEnum):
    """Test and live share no key, wallet or PSP account."""

    TEST = "test"
    LIVE = "live"


DataDirectory = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Data directory. Default: FLORIN_DATA_DIR, else /var/lib/florin as root, else ~/.local/share/florin.",
    ),
]


def _require_host(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("it is empty: give an address, like 127.0.0.1, or 0.0.0.0 for all IPv4 addresses")
    return text.strip()


def minor_amount(text: str) -> int:
    """An amount in minor units. One with decimals is refused, because it would be taken for a hundredth of what is meant."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):
        raise typer.BadParameter(f"{text!r} is not an integer number of minor units: write 1999 for 19.99 €")
    return int(text)


Host = Annotated[str, typer.Option("--host", help="The address to listen on.", callback=_require_host)]
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


def data_directory(given: Path | None) -> Path:
    """The data directory, as an absolute path."""
    if given == Path():
        raise NoRunningInstance("--data-dir is empty: name a directory")
    return (given or default_data_directory()).expanduser().absolute()


def running_instance(directory: Path | None, *, flags: str = "--data-dir", is_demo: bool = False) -> Running:
    """The running instance of this data directory; None stands for `FLORIN_DATA_DIR`, or for the only one that runs on this
    machine, which is asked for if there are several. `flags` are those that choose one; `is_demo`: one with a sandbox is wanted,
    if there is one. Raises `NoRunningInstance`.
    """
    if directory is None and environment("DATA_DIR") is None:
        found = running_instances()
        if is_demo:
            found = [one for one in found if one.data_directory] or found
        if found:
            return found[0] if len(found) == 1 else _chosen(found, flags)
    path = running_file(data_directory(directory))
    running = read_running(path)
    if running is None:
        raise NoRunningInstance(
            f"no Florin is running on {path.parent}: start one with `florin up`, or give its --data-dir or a --database-url"
        )
    if not running.is_alive:
        raise NoRunningInstance(f"the Florin on {path.parent} has stopped: start it again with `florin up`")
    return running


def _chosen(found: Sequence[Running], flags: str) -> Running:
    """The instance that is meant, by a question if somebody is there to answer it."""
    names = [f"{number}) {one.name}" for number, one in enumerate(found, start=1)]
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NoRunningInstance(f"{len(found)} Florins run here: choose one with {flags}: {'; '.join(names)}")
    typer.echo("\n".join([f"{len(found)} Florins run here:", *names]), err=True)
    while True:
        number: int = typer.prompt("Which one", type=int, err=True)
        if 1 <= number <= len(found):
            return found[number - 1]


def demo_instance(directory: Path | None) -> tuple[Running, Demo]:
    """A running instance with its demo merchant. Raises `NoRunningInstance`."""
    running = running_instance(directory, is_demo=True)
    if not running.data_directory:
        raise NoRunningInstance(
            "the Florin that runs here has no demo merchant and no sandbox, which `florin up` has: give --api-url and --api-key"
        )
    return running, load_or_generate(Path(running.data_directory) / "demo.json")


def find_database(directory: Path | None, database_url: str | None) -> str:
    """The database to use: the flag, else the instance of the given directory, else the environment, else the instance of the
    default directory. Raises `NoRunningInstance`.
    """
    if database_url or directory is not None:
        return database_url or running_instance(directory).database_url
    return environment("DATABASE_URL") or running_instance(None, flags="--data-dir or --database-url").database_url


def find_key_file(directory: Path | None, key_file: Path | None, database_url: str | None) -> Path:
    """The sealing key to use: that of the database that was found in the same way. Raises `NoRunningInstance`."""
    if key_file is not None:
        return key_file
    if directory is None and (given := environment("KEY_FILE")) is not None:
        return Path(given)
    if database_url or (directory is None and environment("DATABASE_URL")):
        raise NoRunningInstance("give --key-file, or set FLORIN_KEY_FILE: the key with which the workers of this database seal")
    return Path(running_instance(directory).key_file)


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


async def require_merchant(connection: Connection, merchant_id: MerchantId) -> Merchant:
    """The merchant of that id. Raises `NotFound`."""
    found = await find_merchant(connection, merchant_id)
    if found is None:
        raise NotFound(f"there is no merchant {encode_id(MERCHANT, merchant_id)}: `florin merchant list` shows them")
    return found


def psp_account_id_of(text: str) -> PspAccountId:
    """The PSP account of an argument. Raises `InvalidId`."""
    try:
        return PspAccountId(decode_id(PSP_ACCOUNT, text))
    except InvalidId as error:
        raise InvalidId(f"{text!r} is not an account: {error}") from error
