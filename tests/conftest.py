"""Fixtures: a real PostgreSQL for the session, a new database for each test, and a whole Florin over real sockets."""

import datetime
import ipaddress
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server import child_process
from server.db.connection import Connection, open_session
from server.db.migrate import migrate, status
from server.process import embedded_postgres
from server.telemetry import configure_logs
from tests.support.florin import Florin, open_florin

ROOT = Path(__file__).parent.parent
REQUIRE_ALL = "FLORIN_TEST_REQUIRE_ALL"
if os.environ.pop("FLORIN_REQUIRE_ALL", None):  # its name before Florin refused variables that it does not know
    os.environ[REQUIRE_ALL] = "1"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # our programs are started a hundred times: compile them once
configure_logs("warning")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="florin-state-")  # sessions of operators are not the user's own
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as behind nohup: our programs would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)


MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 6 * 2**30


def pytest_addoption(parser: pytest.Parser) -> None:
    """Put the long forms of tests behind a flag."""
    parser.addoption("--write-tables", action="store_true", help="write the tables that tests produce, rather than compare them")
    parser.addoption("--long", action="store_true", help="run the stateful tests for an hour rather than a minute")


def program(name: str) -> str:
    """The path of an optional outside program. The test is skipped if it is missing, and fails if all are required."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get(REQUIRE_ALL):
            pytest.fail(f"{name} is not installed, and {REQUIRE_ALL} is set")
        pytest.skip(f"{name} is not installed")
    return found


def debian_postgres() -> Path:
    """The binaries of the newest PostgreSQL of Debian; skipped or required like any outside program."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        program("postgres")  # reports that it is missing, as for any other program
    return found[-1].parent if found else Path(shutil.which("postgres") or "").parent


def make_reachable_directory(parent: Path | None = None) -> Path:
    """A directory that other users can enter, because PostgreSQL runs as another user when the tests run as root."""
    directory = Path(tempfile.mkdtemp(prefix="florin-test-", dir=parent))
    directory.chmod(0o711)
    return directory


def fast_directory() -> Path:
    """A directory for a server whose databases are made and dropped for each test: in memory if there is room, because a
    checkpoint on a disk takes longer than a test.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN
    return make_reachable_directory(MEMORY if has_room else None)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A data directory for one test."""
    made = make_reachable_directory()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[embedded_postgres.Embedded]:
    """The embedded PostgreSQL, with a migrated template database."""
    made = fast_directory()
    server = embedded_postgres.start(made)
    try:
        trio.run(_prepare_template, server)
        yield server
    finally:
        trio.run(lambda: child_process.stop(server.process, first=signal.SIGINT, seconds=10))
        shutil.rmtree(made, ignore_errors=True)


async def _prepare_template(server: embedded_postgres.Embedded) -> None:
    await embedded_postgres.until_ready(server)
    connection = await Connection.open(server.url)
    await migrate(connection)
    connection.discard()


def database_of(server: embedded_postgres.Embedded, name: str) -> str:
    """The address of another database of the same server."""
    return server.tcp_url.rpartition("/")[0] + "/" + name


@pytest.fixture(scope="session")
def debian_server() -> Iterator[embedded_postgres.Embedded]:
    """Debian's PostgreSQL, with a login user who may create roles and nothing else."""
    directory = fast_directory()
    server = embedded_postgres.start(directory, binaries=debian_postgres())
    try:
        trio.run(embedded_postgres.until_ready, server)
        with psycopg.connect(server.tcp_url, autocommit=True) as connection:
            connection.execute("CREATE ROLE shop LOGIN CREATEROLE PASSWORD 'shop'")
        yield server
    finally:
        trio.run(lambda: child_process.stop(server.process, first=signal.SIGINT, seconds=10))
        shutil.rmtree(directory, ignore_errors=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked `any_postgres` on the embedded PostgreSQL and on Debian's, there without a superuser."""
    if metafunc.definition.get_closest_marker("any_postgres") is not None:
        metafunc.parametrize("database_url", ["embedded", "debian"], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated, empty database for one test."""
    name = f"test_{uuid4().hex}"
    if getattr(request, "param", "embedded") == "debian":
        debian: embedded_postgres.Embedded = request.getfixturevalue("debian_server")
        host = debian.tcp_url.rpartition("@")[2].rpartition("/")[0]
        made = f"postgresql://shop:shop@{host}/{name}"
        with psycopg.connect(debian.tcp_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER shop")
            trio.run(_migrate, made)
            yield made
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        return
    postgres: embedded_postgres.Embedded = request.getfixturevalue("postgres")
    with psycopg.connect(database_of(postgres, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE florin")
        yield database_of(postgres, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _migrate(url: str) -> None:
    async with open_session(url) as session:
        assert await migrate(session)
        assert all(applied_at for _, applied_at in await status(session))


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    """A connection to the test's database."""
    opened = await Connection.open(database_url)
    yield opened
    opened.discard()


@pytest.fixture
async def florin(database_url: str, directory: Path) -> AsyncIterator[Florin]:
    """A worker, the sandbox PSP and the demo shop, in this process over real sockets. At the end all promises must hold."""
    async with open_florin(database_url, directory) as running:
        yield running
        await running.require_promises()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "florin test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    key_bytes = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key_bytes)
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
