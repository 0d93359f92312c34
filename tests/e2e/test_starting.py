"""The first contact: a production instance from `florin init`, settings that are wrong, and finding what runs."""

import errno
import os
import re
import resource
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx2
import psycopg
import pyotp
import pytest

from core.errors import FlorinError
from server.cli import end
from server.http.server.listener import bind
from server.process.embedded_postgres import Embedded
from server.process.postgres_setup import advised
from tests.conftest import database_of, debian_postgres
from tests.support.command import FLORIN, on_a_terminal, run, started, up

pytestmark = pytest.mark.slow


def florin(*arguments: str, code: int, directory: Path | None = None, text: str = "", **variables: str) -> str:
    """Run a command in an environment of its own. It must end with a code, and say one line if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLORIN_")} | variables
    done = subprocess.run(
        [FLORIN, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=directory, input=text
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1, said
    return said


def free_port() -> int:
    with bind("127.0.0.1", 0) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def serving(settings: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`florin serve` with a file of settings, ready."""
    command = [FLORIN, "--settings", str(settings), "serve", "--port", str(port), "--workers", "1"]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready"), line
        yield process


def run_roles(administrator_url: str, made: Path, *, code: int = 0) -> str:
    """Run roles.sql as an administrator's psql does."""
    command = [str(debian_postgres() / "psql"), "-q", administrator_url, "-f", str(made / "roles.sql")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture
def empty_database(debian_server: Embedded) -> Iterator[str]:
    """The administrator's address of a new database on Debian's PostgreSQL."""
    name = f"init_{uuid4().hex}"
    with psycopg.connect(debian_server.tcp_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        yield database_of(debian_server, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_production_instance_in_the_steps_that_init_says(
    directory: Path, empty_database: str, certificate: tuple[str, str]
) -> None:
    made, port = directory / "etc", free_port()
    host = empty_database.rpartition("@")[2]
    tls = ("--tls-cert", certificate[0], "--tls-key", certificate[1])
    login = ("--login-prefix", prefix := f"init_{uuid4().hex[:12]}")
    said = florin("init", str(made), "--database-url", f"postgresql://{host}", "--port", str(port), *login, *tls, code=0)
    for step in ("roles.sql", "owner.env migrate", "florin.env serve", "operator login", "psp add stripe", "merchant add"):
        assert step in said
    assert "exists" in florin("init", str(made), "--database-url", f"postgresql://{host}", code=1)
    private = {"sealing.key", "roles.sql", "owner.env", "florin.env", "operator.env"}
    assert {one.name for one in made.iterdir()} == {*private, "florin.service"}
    assert all((made / name).stat().st_mode & 0o077 == 0 for name in private)
    unit = (made / "florin.service").read_text()
    assert "LoadCredential=sealing.key:" in unit
    assert "--tls-cert %d/tls.pem" in unit

    run_roles(empty_database, made)
    refused = run_roles(empty_database.replace("/init_", "/postgres?application_name=init_"), made, code=3)
    assert "this file is for the database init_" in refused
    assert f"the login {prefix}_owner exists: if it is another Florin's" in run_roles(empty_database, made, code=3)
    assert f"--host 127.0.0.1 --port {port} --workers" in said
    assert "lacks migration" in florin("--settings", str(made / "florin.env"), "serve", code=1)
    assert "0014" in run("--settings", str(made / "owner.env"), "migrate")
    secrets = directory / "key", directory / "secret"
    secrets[0].write_text("sk_live_" + "a" * 24)
    secrets[1].write_text("whsec_" + "b" * 24)
    operator = ("--settings", str(made / "operator.env"))
    files = ("--api-key-file", str(secrets[0]), "--webhook-secret-file", str(secrets[1]))
    assert "nobody is logged in here" in run(*operator, "psp", "add", "stripe", "--mode", "live", *files, code=1)
    first_operator(operator, directory)
    assert "acct_" in run(*operator, "psp", "add", "stripe", "--mode", "live", "--name", "Stripe", *files)
    key = re.findall(
        r"fl_live_\w+", run(*operator, "merchant", "add", "Shop", "--mode", "live", "--return-hosts", "shop.example")
    )
    wrong = florin("--settings", str(made / "operator.env"), "serve", "--port", str(port), code=1)
    assert "permission denied" in wrong
    other = directory / "other.key"
    florin("key", "new", str(other), code=0)
    wrong = florin("--settings", str(made / "florin.env"), "serve", "--port", str(port), "--key-file", str(other), code=1)
    assert f"sealed with another key than {other}" in wrong
    with serving(made / "florin.env", port) as process:
        headers = {"authorization": f"Bearer {key[0]}"}
        trust = ssl.create_default_context(cafile=certificate[0])
        reply = httpx2.get(f"https://127.0.0.1:{port}/v1/wallets", headers=headers, verify=trust)
        assert reply.json() == {"data": []}
        assert "all promises are kept" in run(*operator, "doctor")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 0


def first_operator(operator: tuple[str, str], directory: Path) -> None:
    """Make the first operator, who has to be an admin, and log in."""
    password = directory / "password"
    password.write_text("a long enough password\n")
    add = (*operator, "operator", "add", "ada", "--password-file", str(password))
    assert "add the first operator with --role admin" in run(*add, code=1)
    added = run(*add, "--role", "admin")
    secret = re.findall(r"as text: (\w+)", added)[0]
    assert len(re.findall(r"^\w{4}-\w{4}-\w{4}-\w{4}$", added, re.MULTILINE)) == 10
    login = (*operator, "operator", "login", "ada", "--password-file", str(password), "--totp")
    assert "wrong name, password or code" in run(*login, "000000", code=1)
    assert "ada, admin, until" in run(*login, pyotp.TOTP(secret).now())
    assert "nobody is logged in" not in run(*operator, "operator", "add", "grace", "--role", "finance", "--service", code=1)


def test_init_asks_what_it_was_not_told(directory: Path) -> None:
    assert "give --database-url" in florin("init", str(directory / "x"), code=1)
    asked = on_a_terminal(
        [FLORIN, "init", str(directory / "x")], answers=["postgresql://db.example/florin", "0.0.0.0", "9000", ""]
    )
    assert "Next, with ADMIN_URL" in asked
    assert "--host 0.0.0.0 --port 9000" in (directory / "x" / "florin.service").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--database-url", "postgresql://u:SECRET@h/db"], "roles.sql makes Florin's logins"),
        (["--database-url", "postgresql://h"], "has no database"),
        (["--database-url", "postgresql://h/db", "--login-prefix", "x'y"], "--login-prefix takes lower-case letters"),
        (["--database-url", "postgresql://h/db?sslpassword=SECRET"], "roles.sql makes Florin's logins"),
        (["--database-url", "postgresql://h/db", "--user", "root\nX=1"], "control character"),
        (["--database-url", "postgresql://h/db", "--host", "x\nFLORIN_FRAUD_URL=z"], "control character"),
        (["--database-url", "mysql://h/db"], "its scheme is 'mysql'"),
        (["--database-url", "postgresql://h/db", "--tls-cert", "x"], "go together"),
        (["--database-url", "postgresql://h/db", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"], "TLS cannot be served"),
    ],
)
def test_init_refuses_what_cannot_work(directory: Path, arguments: list[str], said: str) -> None:
    refused = florin("init", str(directory / "x"), *arguments, code=1)
    assert said in refused
    assert "SECRET" not in refused
    assert not (directory / "x").exists()


def test_a_key_is_made_once_and_every_error_says_its_form(directory: Path) -> None:
    key = directory / "sealing.key"
    assert "Keep a copy" in florin("key", "new", str(key), code=0)
    assert key.stat().st_mode & 0o777 == 0o600
    first = key.read_bytes()
    assert "choose another name" in florin("key", "new", str(key), code=1)
    assert key.read_bytes() == first
    for wrong in ("", "00" * 32, "not base64!", "c2hvcnQ="):
        key.write_text(wrong)
        said = florin("serve", "--database-url", "postgresql://127.0.0.1:1/x", "--key-file", str(key), code=1)
        assert "32 random bytes in base64" in said
        assert "florin key new" in said


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FLORIN_DATABSE_URL": "x"}, "unknown variable 'FLORIN_DATABSE_URL': did you mean FLORIN_DATABASE_URL?"),
        ({"FLORIN_TRUSTED_PROXIES": "10.0.0.1/8"}, "FLORIN_TRUSTED_PROXIES: '10.0.0.1/8' is not a network"),
        ({"FLORIN_TRUSTED_PROXIES": "10.0.0.0/8, proxy"}, "FLORIN_TRUSTED_PROXIES: 'proxy' is not a network"),
        ({"FLORIN_WEBHOOK_NETWORKS": "10.0.0.1/8"}, "FLORIN_WEBHOOK_NETWORKS: '10.0.0.1/8' is not a network"),
        ({"FLORIN_FRAUD_URL": "nope"}, "FLORIN_FRAUD_URL: 'nope' is not a URL"),
        ({"FLORIN_FRAUD_URL": "ftp://x/"}, "FLORIN_FRAUD_URL: 'ftp://x/' is not a URL"),
        ({"FLORIN_ALLOWED_ORIGINS": "shop.example"}, "FLORIN_ALLOWED_ORIGINS: 'shop.example' is not an origin"),
        ({"FLORIN_POOL_SIZE": "many"}, "FLORIN_POOL_SIZE: "),
    ],
)
def test_a_wrong_setting_is_named_at_once(directory: Path, variables: dict[str, str], said: str) -> None:
    for command in (["serve", "--database-url", "postgresql://127.0.0.1:1/x", "--key-file", "x"], ["up"]):
        began = time.monotonic()
        assert said in florin(*command, code=1, directory=directory, FLORIN_DATA_DIR=str(directory), **variables)
        assert time.monotonic() - began < 10


def test_settings_with_blanks_and_a_comma_too_many_are_taken(directory: Path, database_url: str) -> None:
    key, port = directory / "sealing.key", free_port()
    florin("key", "new", str(key), code=0)
    settings = directory / "florin.env"
    settings.write_text(
        f"# ours\n\nFLORIN_DATABASE_URL = '{database_url}'\nFLORIN_KEY_FILE={key}\nFLORIN_TRUSTED_PROXIES=10.0.0.0/8, \n"
    )
    with serving(settings, port):
        assert httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    for wrong, said in (
        ("FLORIN_KEY_FILE=a\nFLORIN_KEY_FILE=b\n", "line 2: FLORIN_KEY_FILE is set a second time"),
        ("export FLORIN_KEY_FILE=a\n", "line 1: expected FLORIN_NAME=VALUE"),
        ("FLORIN_KEYFILE=a\n", "did you mean FLORIN_KEY_FILE?"),
        ("\ufeffFLORIN_KEYFILE=a\n", "did you mean FLORIN_KEY_FILE?"),
        ("FLORIN_KEY_FILE=\0\n", "line 1: expected FLORIN_NAME=VALUE"),
    ):
        settings.write_text(wrong)
        assert said in florin("--settings", str(settings), "serve", code=1)
    assert "cannot read the settings" in florin("--settings", str(directory / "none"), "serve", code=1)


def test_an_empty_host_is_not_every_address(directory: Path) -> None:
    for host in ("", " "):
        assert "it is empty" in florin("up", "--host", host, code=2, FLORIN_DATA_DIR=str(directory))
        assert "it is empty" in florin("serve", "--host", host, "--database-url", "x", "--key-file", "x", code=2)


def test_no_variable_of_postgres_reaches_an_instance(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGSSLMODE": "require",
        "PGDATESTYLE": "German",
        "PGOPTIONS": "-c search_path=nope",
        "PGPORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with up("--data-dir", str(directory), "--workers", "1"):
        assert "all promises are kept" in run("smoke", "--data-dir", str(directory))


def test_a_stale_lock_of_postgres_does_not_keep_an_instance_from_starting(directory: Path) -> None:
    """A machine that went down leaves a number in postmaster.pid that is another process's by now."""
    data = ("--data-dir", str(directory), "--workers", "1")
    with up(*data) as first:
        first.end(signal.SIGTERM)
    lock = directory / "postgres" / "data" / "postmaster.pid"
    with started([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        lock.write_text(f"{other.pid}\n{directory}/postgres/data\n1\n5432\n\n127.0.0.1\n")
        os.chown(lock, *(lambda found: (found.st_uid, found.st_gid))(lock.parent.stat()))
        with up(*data):
            assert "all promises are kept" in run("doctor", "--data-dir", str(directory))


def test_a_full_disk_is_said_in_a_line(directory: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [FLORIN, "up", "--data-dir", str(directory), "--port", "0", "--psp-port", "0", "--shop-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    with up("--data-dir", str(directory), "--workers", "1"):  # nothing is left behind that keeps it from starting
        pass
    assert "free some space" in advised("could not write\nto file: No space left on device")
    for problem in (OSError(errno.ENOSPC, "No space left on device", "/x"), OSError(errno.EFBIG, "File too large")):
        with pytest.raises(SystemExit):
            end([problem])


def test_commands_find_the_only_instance_and_ask_among_several(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = directory / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("HOME", str(directory))
    with up("--ephemeral", "--workers", "1", "--data-dir", str(directory)) as first:
        assert "6 of 6 outcomes as expected" in run("smoke")
        assert "all promises are kept" in run("doctor")
        payment = re.findall(r"pay_\w{32}", run("trigger", "payment.succeeded"))[0]
        assert "→ SUCCEEDED" in run("explain", payment)
        with up("--workers", "1", "--data-dir", str(directory / "second")) as second:
            said = florin("doctor", code=2)
            assert "2 Florins run here: choose one with --data-dir or --database-url" in said
            assert first.value("API") in said
            assert second.value("API") in said
            assert "all promises are kept" in run("doctor", "--data-dir", str(directory / "second"))
            assert "all promises are kept" in florin("doctor", code=0, FLORIN_DATA_DIR=str(directory / "second"))
            asked = on_a_terminal([FLORIN, "doctor"], answers=["7", "2"])
            assert "Which one" in asked
            assert "all promises are kept" in asked
        assert "all promises are kept" in run("doctor")
        assert all(one.stat().st_mode & 0o077 == 0 for one in (runtime / "florin").iterdir())
        first.end(signal.SIGTERM)
    assert "no Florin is running" in florin("doctor", code=2)


def test_a_database_url_needs_its_own_key_and_no_data_directory(directory: Path, database_url: str) -> None:
    for command in (
        ["merchant", "add", "x", "--webhook-url", "https://shop.example/"],
        ["psp", "add", "stripe"],
        ["psp", "rotate-secret", "acct_" + "0" * 32],
    ):
        said = florin(*command, "--database-url", database_url, code=1)
        assert "give --key-file, or set FLORIN_KEY_FILE" in said
        assert "/var/lib" not in said


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_ctrl_c_is_quiet_from_the_first_moment(directory: Path, seconds: float) -> None:
    code = f"import sys; sys.argv = ['florin', 'doctor', '--data-dir', {str(directory)!r}]\n"
    code += "from server.__main__ import main; print('begun', flush=True); main()"
    with started([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(seconds)  # any moment will do: modules are imported, or it has ended
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=10)
    assert "Traceback" not in said[1]
    assert process.returncode == 130 or "no Florin is running" in said[1]


def test_an_error_of_the_system_is_one_of_ours() -> None:
    with pytest.raises(SystemExit) as ended:
        end([FlorinError("x")])
    assert ended.value.code == 1
