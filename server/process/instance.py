"""A whole running Florin in one block: PostgreSQL, migrations, demo merchant, sandbox and workers.

`florin up`, the tests and the bench all use it. Every part is a child of this process (`server.child_process`), is started again
if it dies, is stopped in reverse order at the end of the block, and ends by itself if this process is killed.
"""

import errno
import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from core.errors import FlorinError
from server import child_process
from server.atomic_files import write_private
from server.clock import utc_now
from server.db.connection import Connection, open_session
from server.db.migrate import migrate
from server.db.psps.accounts import list_psp_accounts
from server.http.server.listener import bind_shared
from server.process.demo import Demo, load_or_generate, provision, provision_operators
from server.process.embedded_postgres import EmbeddedPart, Login, ensure_logins, open_embedded
from server.process.part import Part
from server.process.running import Running, announced
from server.process.supervisor import Supervisor
from server.sandbox.program import SandboxConfiguration
from server.sealing import Sealer, SealError, create_key_file
from server.settings import API_PORT, PSP_PORT, SHOP_PORT, environment

# Together these, and the embedded PostgreSQL's, stay below ten seconds, the longest that Ctrl-C may take.
DRAIN_SECONDS = 3.0
SANDBOX_START_SECONDS = 20.0
SANDBOX_STOP_SECONDS = 1.5
LOOPBACK = "127.0.0.0/8,::1"
"""The default of networks that webhooks may go to besides the public internet: the demo shop, and what a developer runs."""


class InstanceError(FlorinError):
    """The instance cannot be started; the text says what to do."""

    code = "instance_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The parts and addresses of an instance. A port of 0 means any free one."""

    data_directory: Path
    database_url: str | None = None
    workers: int = 1
    host: str = "127.0.0.1"
    port: int = API_PORT
    psp_port: int = PSP_PORT
    shop_port: int = SHOP_PORT
    port_per_worker: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instance:
    """A running instance. `database_url` is that of whoever has set it up: the superuser of an embedded PostgreSQL."""

    running: Running
    database_url: str
    demo: Demo
    supervisor: Supervisor
    sandbox: Part
    postgres: Part | None

    @property
    def api_url(self) -> str:
        """The API of the first worker; with one shared port it is the API of all."""
        return self.running.api_urls[0]


@asynccontextmanager
async def open_instance(options: Options) -> AsyncIterator[Instance]:
    """Start everything; the instance is ready when the block is entered. Must be entered in the main thread.

    Raises `InstanceError`, `EmbeddedPostgresError`, `MigrationError` or `SupervisorError`, possibly in an exception group.
    """
    directory = options.data_directory
    with _directory(directory), _sockets(options) as (api_sockets, psp_socket, shop_socket):
        async with _database(options) as (urls, postgres):
            key_file = directory / "keys" / "sealing.key"
            create_key_file(key_file)
            running = Running(
                pid=os.getpid(),
                api_urls=list(dict.fromkeys(_url(one) for one in api_sockets)),
                psp_url=_url(psp_socket),
                shop_url=_url(shop_socket),
                database_url=urls.operator,
                key_file=str(key_file),
                data_directory=str(directory),
            )
            demo = load_or_generate(directory / "demo.json")
            await _prepare(running, demo, urls.owner, postgres)
            async with _sandbox(directory, running, demo, psp_socket, shop_socket) as sandbox:
                supervisor = Supervisor(
                    api_sockets,
                    environment=_environment(options, running, urls.worker),
                    drain_seconds=DRAIN_SECONDS,
                    stop_signal=signal.SIGINT,
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sandbox.keep)
                    if postgres is not None:
                        nursery.start_soon(postgres.keep)
                    await nursery.start(supervisor.run)
                    try:
                        with announced(running):
                            yield Instance(running, urls.owner, demo, supervisor, sandbox, postgres)
                    finally:
                        nursery.cancel_scope.cancel()


@contextmanager
def _directory(directory: Path) -> Iterator[None]:
    """Lock the data directory for one instance at a time."""
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for private in ("keys", "sandbox"):
            (directory / private).mkdir(mode=0o700, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InstanceError(f"cannot use the data directory {directory}: {error}. Choose another one with --data-dir") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InstanceError(f"another Florin uses {directory}: stop it, or choose another one with --data-dir") from None
    finally:
        os.close(lock)


def cannot_listen(host: str, port: int, error: OSError, *, flag: str) -> str:
    """The error of a port that cannot be used, with the option to change."""
    is_the_port = error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EINVAL)
    return (
        f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another one with {flag if is_the_port else '--host'}"
    )


@contextmanager
def _sockets(options: Options) -> Iterator[tuple[Sequence[socket.socket], socket.socket, socket.socket]]:
    with ExitStack() as stack:

        def listen(port: int, flag: str) -> socket.socket:
            return stack.enter_context(_bound(options.host, port, 1, flag=flag)[0])

        if options.port_per_worker:
            api = [listen(options.port + number if options.port else 0, "--port") for number in range(options.workers)]
        else:
            api = [stack.enter_context(one) for one in _bound(options.host, options.port, options.workers, flag="--port")]
        yield api, listen(options.psp_port, "--psp-port"), listen(options.shop_port, "--shop-port")


def _bound(host: str, port: int, count: int, *, flag: str) -> list[socket.socket]:
    try:
        return bind_shared(host, port, count)
    except OSError as error:
        raise InstanceError(cannot_listen(host, port, error, flag=flag)) from error


@dataclass(frozen=True, slots=True)
class _Urls:
    """The addresses of a database for those who use it."""

    owner: str
    worker: str
    operator: str


@asynccontextmanager
async def _database(options: Options) -> AsyncIterator[tuple[_Urls, EmbeddedPart | None]]:
    if options.database_url is not None:
        yield _Urls(options.database_url, options.database_url, options.database_url), None
        return
    async with open_embedded(options.data_directory) as embedded:
        logins = embedded.server.logins
        yield _Urls(embedded.server.url, logins[Login.WORKER], logins[Login.OPERATOR]), embedded


async def _prepare(running: Running, demo: Demo, owner_url: str, postgres: EmbeddedPart | None) -> None:
    async with open_session(owner_url) as connection:
        await migrate(connection)
        if postgres is not None:
            await ensure_logins(connection, postgres.server)
        sealer = Sealer.from_file(Path(running.key_file))
        await require_own_secrets(connection, sealer, key_file=running.key_file)
        await provision(connection, demo, sealer, psp_url=running.psp_url, shop_url=running.shop_url, now=utc_now())
        await provision_operators(connection, Path(running.data_directory), sealer, now=utc_now())


async def require_own_secrets(connection: Connection, sealer: Sealer, *, key_file: str) -> None:
    """Refuse, before anything is written, a database whose secrets were sealed with another key. Raises `InstanceError`."""
    try:
        for account in await list_psp_accounts(connection):
            sealer.open(account.sealed_api_key, table="psp_accounts.api_key", row=account.id)
    except SealError as error:
        raise InstanceError(
            f"this database's secrets were sealed with another key than {key_file}: "
            "use its own key file, or the data directory that it was set up with, or choose another database"
        ) from error


@asynccontextmanager
async def _sandbox(
    directory: Path, running: Running, demo: Demo, psp_socket: socket.socket, shop_socket: socket.socket
) -> AsyncIterator[Part]:
    configuration = SandboxConfiguration(
        florin_url=running.api_urls[0],
        psp_url=running.psp_url,
        psp_api_key=demo.psp_api_key,
        psp_webhook_url=demo.psp_webhook_url(running.api_urls[0]),
        psp_webhook_secret=demo.psp_webhook_secret,
        shop_url=running.shop_url,
        shop_api_key=demo.api_key,
        shop_webhook_secret=demo.webhook_secret,
        directory=str(directory / "sandbox"),
    )
    path = directory / "sandbox" / "configuration.json"
    write_private(path, msgspec.json.encode(configuration))
    pipes: list[int] = []

    def start() -> subprocess.Popen[bytes]:
        reading, writing = os.pipe()
        pipes.append(reading)
        descriptors = (psp_socket.fileno(), shop_socket.fileno(), writing)
        try:
            return child_process.spawn(
                child_process.python("server.sandbox.program", str(path), *map(str, descriptors)),
                death_signal=signal.SIGTERM,
                pass_fds=descriptors,
            )
        finally:
            os.close(writing)

    async def ready() -> None:
        if not await child_process.is_ready(pipes.pop(), seconds=SANDBOX_START_SECONDS):
            raise InstanceError("the sandbox did not start; its reason is in the log above")

    part = Part("the sandbox", start, ready, stop_signal=signal.SIGTERM, stop_seconds=SANDBOX_STOP_SECONDS)
    async with part.open():
        yield part


def _environment(options: Options, running: Running, database_url: str) -> dict[str, str]:
    return {
        **os.environ,
        "FLORIN_DATABASE_URL": database_url,
        "FLORIN_KEY_FILE": running.key_file,
        "FLORIN_DRAIN_SECONDS": str(DRAIN_SECONDS),
        "FLORIN_WEBHOOK_NETWORKS": environment("WEBHOOK_NETWORKS") or LOOPBACK,
        **options.settings,
    }


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - shown, not bound
    return f"http://{shown}:{port}"
