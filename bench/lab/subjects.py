"""The subjects: a Florin that is started for the run (of this or another checkout), a running one, or a peer.

Each consists of its own processes, in named components whose CPU time and memory come from /proc. All subjects of a run share one
PostgreSQL, its schema and merchants, the stub PSP and the generators, and take turns.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import msgspec
import trio

from bench import INSTALL
from bench.lab.load import Generator, free_socket
from bench.measure import process_tree, scratch_directory
from core.errors import FlorinError
from core.ids import EndpointId, MerchantId, PspAccountId
from core.signing import standard_secret
from server import child_process
from server.atomic_files import write_private
from server.clock import utc_now
from server.credentials import api_key, key_hash
from server.db.connection import open_session
from server.db.merchants import api_keys
from server.db.merchants import merchants as merchants_table
from server.db.psps.accounts import PspAccount, add_psp_account
from server.db.webhooks.endpoints import Endpoint, add_endpoint
from server.process.demo import Demo
from server.process.embedded_postgres import owner_url
from server.process.running import Running, running_file
from server.sealing import Sealer
from server.uuid7 import uuid7

READY_SECONDS = 60.0
METRICS_TOKEN = "florin-bench-reads-the-metrics"
STOP_SECONDS = 20.0
ROOT = Path(__file__).parent.parent.parent
Pids = Callable[[], Iterable[int]]


class SubjectError(FlorinError):
    """A subject cannot be started, or has ended; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Merchants:
    """The merchants that get the load: the keys for each generator. The secret signs the webhooks to all of them."""

    keys: list[list[str]]
    ids: list[MerchantId] = field(default_factory=list)
    psp_account_id: PspAccountId | None = None
    webhook_secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server that takes payments. `components`: its processes by name; `home` only if it was started here."""

    name: str
    url: str
    psp_url: str | None
    components: Mapping[str, Pids]
    merchants: Merchants
    database_url: str | None = None
    home: Path | None = None
    has_metrics: bool = False
    processes: Sequence["subprocess.Popen[bytes]"] = ()
    log: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The parameters of a started Florin. `environment` is its settings; `merchants` is the number that share the load."""

    workers: int = 1
    merchants: int = 64
    environment: Mapping[str, str] = field(default_factory=dict)
    checkout: Path = ROOT
    has_stub: bool = True


@asynccontextmanager
async def open_florin(setup: Setup, generators: Sequence[Generator], *, name: str = "florin") -> AsyncIterator[Subject]:
    """`florin up` with its own database, and merchants whose webhooks go to the generators. Raises `SubjectError`."""
    with scratch_directory() as home:
        async with _up(setup, home) as process:
            running = msgspec.json.decode(running_file(home).read_bytes(), type=Running)
            database_url = owner_url(home, running.database_url)
            with stub_psp() as (stub_url, stub_pid):
                psp_url = stub_url if setup.has_stub else running.psp_url
                merchants = await _provision(setup, home, database_url, generators, psp_url)
                yield Subject(
                    name=name,
                    url=running.api_urls[0],
                    psp_url=psp_url,
                    components={
                        "worker": _descendants(process.pid, ".worker"),
                        "PostgreSQL": _descendants(process.pid, "postgres"),
                        "PSP": (lambda: [stub_pid]) if setup.has_stub else _descendants(process.pid, "server.sandbox.program"),
                        "load": lambda: [one.process.pid for one in generators],
                    },
                    merchants=merchants,
                    database_url=database_url,
                    home=home,
                    has_metrics=setup.workers == 1,
                    processes=[process],
                    log=home / "florin.log",
                )


@asynccontextmanager
async def _up(setup: Setup, home: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", "-c", "from server.cli import main; main()", "up", "--data-dir", str(home)]
    command += ["--workers", str(setup.workers), "--port", "0", "--psp-port", "0", "--shop-port", "0"]
    environment = {
        "FLORIN_LOG_LEVEL": "error",
        "FLORIN_REQUESTS_IN_FLIGHT_MAX": "16000",
        "FLORIN_WEBHOOK_NETWORKS": "127.0.0.0/8,::1",
        # The shell's settings for another Florin, above all its database, do not apply to this one.
        **{name: value for name, value in os.environ.items() if not name.startswith("FLORIN_")},
        **setup.environment,
        "FLORIN_METRICS_TOKEN": METRICS_TOKEN,
        "PYTHONPATH": str(setup.checkout),
    }
    log = home / "florin.log"
    with _private(log) as out:
        process = child_process.spawn(command, death_signal=signal.SIGTERM, environment=environment, stdout=out, stderr=out)
    try:
        with trio.move_on_after(READY_SECONDS) as scope:
            while not running_file(home).exists():
                if process.poll() is not None:
                    raise SubjectError(f"florin did not start: {log.read_text()[-600:].strip()}")
                await trio.sleep(0.05)  # noqa: ASYNC110 - another process's file sends no event when it appears
        if scope.cancelled_caught:
            raise SubjectError(f"florin did not start within {READY_SECONDS:g} s: {log.read_text()[-600:].strip()}")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


@contextmanager
def stub_psp() -> Iterator[tuple[str, int]]:
    """A stub PSP: its address and its pid."""
    with free_socket() as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        command = child_process.python("bench.generator.psp_stub", str(listening.fileno()))
        process = child_process.spawn(command, death_signal=signal.SIGKILL, pass_fds=[listening.fileno()])
        listening.close()  # so that nothing waits in a queue that is no longer served
        try:
            yield url, process.pid
        finally:
            process.kill()
            process.wait()


async def _provision(setup: Setup, home: Path, database_url: str, generators: Sequence[Generator], psp_url: str) -> Merchants:
    """Create merchants for the load. With the sandbox they use its account, whose webhooks it sends."""
    sealer = Sealer.from_file(home / "keys" / "sealing.key")
    demo = msgspec.json.decode((home / "demo.json").read_bytes(), type=Demo)
    account_id = PspAccountId(demo.psp_account_id)
    secret = standard_secret(os.urandom(32))
    keys: list[list[str]] = [[] for _ in generators]
    ids: list[MerchantId] = []
    now = utc_now()
    async with open_session(database_url) as connection:
        if setup.has_stub:
            account_id = PspAccountId(uuid7())
            account = PspAccount(
                id=account_id,
                psp="sandbox",
                mode="test",
                base_url=psp_url,
                sealed_api_key=sealer.seal("stub", table="psp_accounts.api_key", row=account_id),
                sealed_webhook_secret=sealer.seal("stub", table="psp_accounts.webhook_secret", row=account_id),
                name="Stub",
                concurrency_max=16_000,
            )
            await add_psp_account(connection, account, now=now)
        for number in range(max(setup.merchants, len(generators))):
            generator = number % len(generators)
            merchant_id, key_id, endpoint_id = MerchantId(uuid7()), uuid7(), EndpointId(uuid7())
            key = api_key("test", merchant_id)
            sealed = sealer.seal(secret, table="webhook_endpoints", row=endpoint_id, merchant=merchant_id)
            async with connection.atomic():
                merchant = merchants_table.Merchant(merchant_id, f"Bench {number}", "test", account_id, now)
                await merchants_table.add_merchant(connection, merchant)
                await api_keys.add_api_key(connection, merchant_id, key_id, secret_sha256=key_hash(key), hint=key[-4:], now=now)
                await add_endpoint(
                    connection,
                    Endpoint(
                        id=endpoint_id,
                        merchant_id=merchant_id,
                        url=generators[generator].ears_url,
                        sealed_secret=sealed,
                        created_at=now,
                        updated_at=now,
                    ),
                )
            keys[generator].append(key)
            ids.append(merchant_id)
    await trio.sleep(1.5)  # workers look for new accounts once a second
    return Merchants(keys, ids, account_id, secret)


def _descendants(pid: int, word: str) -> Pids:
    """The descendants whose command line contains a word; PostgreSQL's children by their parent."""

    def find() -> list[int]:
        found = []
        for one in process_tree(pid):
            try:
                command = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if word in command and " -c from server" not in command:
                found.append(one)
        return found

    return find


PEERS = ("swoole", "asyncio", "trio")
_MODULES = {"asyncio": "bench.peers.asyncio_stack", "trio": "bench.peers.trio_stack"}


def missing_peer(name: str) -> str | None:
    """The reason why a peer cannot be measured here; None if it can."""
    if name == "swoole":
        php = shutil.which("php")
        if php is None:
            return "php is not installed"
        if swoole_flags(php) is None:
            return "php has no Swoole extension with coroutine PostgreSQL (bench/peers/NOTES.md says how it is built)"
        return None
    wanted = ("asyncpg", "aiohttp", "starlette", "uvicorn") if name == "asyncio" else ("httpx", "hypercorn", "quart_trio")
    missing = [module for module in wanted if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(missing)} ({INSTALL})" if missing else None


def swoole_flags(php: str) -> list[str] | None:
    """The arguments that start PHP with Swoole; None without Swoole."""
    for flags in ([], ["-d", "extension=swoole"]):
        probe = ["-r", "exit(defined('SWOOLE_HOOK_PDO_PGSQL') && extension_loaded('pdo_pgsql') ? 0 : 1);"]
        if subprocess.run([php, *flags, *probe], capture_output=True, check=False, timeout=20).returncode == 0:
            return flags
    return None


@asynccontextmanager
async def open_peer(name: str, beside: Subject, *, workers: int = 1) -> AsyncIterator[Subject]:
    """A peer on the database, merchants and stub PSP of a running Florin. Raises `SubjectError`."""
    if reason := missing_peer(name):
        raise SubjectError(f"{name} is left out: {reason}")
    assert beside.home is not None
    merchants, log = beside.merchants, beside.home / f"{name}.log"
    with free_socket() as listening, _private(log) as out:
        port = listening.getsockname()[1]
        configuration = {
            "database_url": beside.database_url,
            "psp_url": beside.psp_url,
            "psp_account_id": merchants.psp_account_id,
            "webhook_secret": merchants.webhook_secret,
            "connections_max": 1_024,
            "descriptor": listening.fileno(),
            "port": port,
            "workers": workers,
        }
        path = beside.home / f"{name}.json"
        write_private(path, msgspec.json.encode(configuration))
        if name == "swoole":
            listening.close()  # Swoole binds by itself, and has its own workers
            php = shutil.which("php") or ""
            commands = [[php, *(swoole_flags(php) or []), str(ROOT / "bench" / "peers" / "swoole.php"), str(path)]]
        else:
            commands = [child_process.python(_MODULES[name], str(path))] * workers
        descriptors = [listening.fileno()] if name != "swoole" else []
        processes = [
            child_process.spawn(command, death_signal=signal.SIGKILL, pass_fds=descriptors, stdout=out, stderr=out)
            for command in commands
        ]
        listening.close()
        try:
            await _until_it_listens(processes, port, log)
            components = {**beside.components, "worker": lambda: [pid for one in processes for pid in process_tree(one.pid)]}
            yield replace(
                beside,
                name=name,
                url=f"http://127.0.0.1:{port}",
                components=components,
                has_metrics=False,
                processes=processes,
                log=log,
            )
        finally:
            for process in processes:
                for pid in reversed(process_tree(process.pid)) if process.poll() is None else ():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()


def require_alive(subject: Subject) -> None:
    """Raise `SubjectError` if one of its processes has ended, because its figures would mean nothing."""
    if any(process.poll() is not None for process in subject.processes):
        said = subject.log.read_text()[-600:].strip() if subject.log is not None else ""
        raise SubjectError(f"{subject.name} has ended: {said}")


@contextmanager
def _private(path: Path) -> Iterator[IO[bytes]]:
    """A log that only its owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as out:
        yield out


async def _until_it_listens(processes: Sequence["subprocess.Popen[bytes]"], port: int, log: Path) -> None:
    """Wait until it answers at all: 404 is an answer."""
    with trio.move_on_after(READY_SECONDS):
        while all(process.poll() is None for process in processes):
            try:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
                    if await stream.receive_some(16):
                        return
            except (OSError, trio.BrokenResourceError):
                pass
            await trio.sleep(0.05)
    raise SubjectError(f"the peer did not start: {log.read_text()[-600:].strip()}")
