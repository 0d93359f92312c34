"""`florin init`: everything that a production instance needs before its first start, in one directory.

Nothing is sent anywhere and nothing that exists is replaced. The three logins of the database have only the rights that they
need: the owner's migrates, the worker's serves, the operator's is for commands.
"""

import os
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from core.errors import Conflict, Unprocessable
from server.atomic_files import create_private
from server.cli.deploy import templates
from server.cli.deploy.key import make_key
from server.cli.options import Host
from server.cli.output import Output, shown
from server.db.conninfo import parse, with_login
from server.http.tls import server_tls
from server.settings import API_PORT, settings_file

KEY, ROLES, UNIT = "sealing.key", "roles.sql", "florin.service"
OWNER_SETTINGS, WORKER_SETTINGS, OPERATOR_SETTINGS = "owner.env", "florin.env", "operator.env"
_PREFIX = re.compile(r"[a-z][a-z0-9_]{0,40}")
_console = Output()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The answers that the files are made from."""

    directory: Path
    database_url: str
    host: str
    port: int
    workers: int
    tls_cert: str
    tls_key: str
    user: str
    login_prefix: str


def command(
    directory: Annotated[
        Path | None,
        typer.Argument(help="Default: /etc/florin as root, else ./florin.", metavar="DIRECTORY"),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option("--database-url", help="The database, like postgresql://db.example:5432/florin, without a user.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = API_PORT,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Number of workers. Default: one per core.", show_default=False)
    ] = None,
    tls_cert: Annotated[str, typer.Option("--tls-cert", help="Serve TLS 1.3 with this certificate chain (PEM).")] = "",
    tls_key: Annotated[str, typer.Option("--tls-key", help="The certificate's private key (PEM).")] = "",
    user: Annotated[
        str, typer.Option("--user", help="The user of the systemd unit. Default: one that systemd draws.", show_default=False)
    ] = "",
    login_prefix: Annotated[
        str, typer.Option("--login-prefix", help="The logins are PREFIX_owner, PREFIX_worker and PREFIX_operator.")
    ] = "florin",
) -> None:
    """Make a directory with all that a production instance needs: key, roles, settings and systemd unit."""
    if directory == Path():
        raise Unprocessable("the directory is empty: name one, . for the current one")
    made = directory or (Path("/etc/florin") if os.geteuid() == 0 else Path("florin"))
    if database_url is None:
        database_url, host, port, tls_cert, tls_key = _asked(host, port, tls_cert, tls_key)
    wanted = Wanted(
        directory=made.expanduser().absolute(),
        database_url=database_url,
        host=host,
        port=port,
        workers=workers or len(os.sched_getaffinity(0)),
        tls_cert=tls_cert and str(Path(tls_cert).absolute()),
        tls_key=tls_key and str(Path(tls_key).absolute()),
        user=user,
        login_prefix=login_prefix,
    )
    _require(wanted)
    _write(wanted)
    _console.print(templates.next_steps(wanted.directory, _arguments(wanted)))


def _asked(host: str, port: int, tls_cert: str, tls_key: str) -> tuple[str, str, int, str, str]:
    """Ask for what was not given. Raises `Unprocessable` without a terminal."""
    if not sys.stdin.isatty():
        raise Unprocessable("give --database-url, like postgresql://db.example:5432/florin; `florin init --help` lists the rest")
    database_url = str(typer.prompt("The database, without user and password", default="postgresql://127.0.0.1:5432/florin"))
    host = str(typer.prompt("The address to listen on, 0.0.0.0 for all", default=host))
    port = int(typer.prompt("The port", default=port, type=int))
    tls_cert = tls_cert or str(typer.prompt("A certificate chain for TLS (PEM), empty for a proxy in front", default=""))
    if tls_cert and not tls_key:
        tls_key = str(typer.prompt("The certificate's private key (PEM)"))
    return database_url, host, port, tls_cert, tls_key


def _require(wanted: Wanted) -> None:
    """Raise `Unprocessable` or `Conflict` before anything is written."""
    params = parse(wanted.database_url)
    texts = (str(wanted.directory), wanted.host, wanted.tls_cert, wanted.tls_key, wanted.user)
    if not all(one.isprintable() and '"' not in one for one in texts):
        raise Unprocessable("no directory, host, file or user may have a control character or a quotation mark in its name")
    if any(params.get(name) for name in ("user", "password", "sslpassword")):
        raise Unprocessable(
            "--database-url names only the database, like postgresql://db.example:5432/florin: roles.sql makes Florin's logins"
        )
    if not params.get("dbname"):
        raise Unprocessable("--database-url has no database: write it like postgresql://db.example:5432/florin")
    if _PREFIX.fullmatch(wanted.login_prefix) is None:
        raise Unprocessable("--login-prefix takes lower-case letters, digits and underscores, and begins with a letter")
    if bool(wanted.tls_cert) != bool(wanted.tls_key):
        raise Unprocessable("--tls-cert and --tls-key go together: give both or neither")
    if wanted.tls_cert:
        try:
            server_tls(wanted.tls_cert, wanted.tls_key)
        except OSError as error:  # ssl.SSLError is one
            raise Unprocessable(f"TLS cannot be served with these files: {error}") from error
    files = (KEY, ROLES, UNIT, OWNER_SETTINGS, WORKER_SETTINGS, OPERATOR_SETTINGS)
    known = next((one for one in files if (wanted.directory / one).exists()), None)
    if known is not None:
        raise Conflict(f"{wanted.directory / known} exists: choose another directory, or move it away if nothing uses it")


def _write(wanted: Wanted) -> None:
    directory = wanted.directory
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    make_key(directory / KEY)
    passwords = {name: secrets.token_hex(24) for name in templates.ROLES_BY_LOGIN}
    urls = {
        name: with_login(wanted.database_url, f"{wanted.login_prefix}_{name}", password) for name, password in passwords.items()
    }
    database = str(parse(wanted.database_url)["dbname"])
    sealed = {"KEY_FILE": str(directory / KEY)}
    tls = {"TLS_CERT": wanted.tls_cert, "TLS_KEY": wanted.tls_key} if wanted.tls_cert else {}
    texts = {
        ROLES: templates.roles(passwords, prefix=wanted.login_prefix, database=database),
        OWNER_SETTINGS: settings_file("for `florin migrate`", {"DATABASE_URL": urls["owner"]}, with_all=False),
        WORKER_SETTINGS: settings_file(
            "of the workers (`florin serve`)", {"DATABASE_URL": urls["worker"], **sealed, **tls}, with_all=True
        ),
        OPERATOR_SETTINGS: settings_file("for operators' commands", {"DATABASE_URL": urls["operator"], **sealed}, with_all=False),
        UNIT: templates.unit(
            directory, user=wanted.user, arguments=_arguments(wanted), tls=(wanted.tls_cert, wanted.tls_key) if tls else None
        ),
    }
    for name, text in texts.items():
        create_private(directory / name, text.encode())
    (directory / UNIT).chmod(0o644)
    for name in (KEY, *texts):
        _console.print(f"made {shown(directory / name)}")


def _arguments(wanted: Wanted) -> str:
    return f"--host {wanted.host} --port {wanted.port} --workers {wanted.workers}"
