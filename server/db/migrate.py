"""Applies numbered SQL files in order, each in its own transaction, under one lock.

Invariants: an applied file never changes (its checksum is compared); two processes that migrate at once wait for each other; a
database that is ahead of this code is not touched, and the error says so.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

import psycopg
import trio

from core.errors import FlorinError
from server.db.connection import Connection
from server.db.roles import Role, ensure_roles

ROLES_MIGRATION = 3
"""The migration that gives everything to florin_migrate. Later ones run as that role, so that it owns what they create."""

UNLOCK_SECONDS = 5.0
TRIES_MAX = 10
_LOCK = 0x464C4F52494E  # "FLORIN"
_MAY_CREATE_ROLES = "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"


class MigrationError(FlorinError):
    """The database and this code's migrations do not fit together."""

    code = "migration_error"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `number` orders the files, `sha256` detects a later change."""

    number: int
    name: str
    sql: str
    sha256: str


def migrations() -> list[Migration]:
    """The files that come with this code, in order."""
    found = []
    for entry in resources.files("server.db").joinpath("migrations").iterdir():
        if entry.name.endswith(".sql"):
            sql = entry.read_text(encoding="utf-8")
            number = int(entry.name.partition("_")[0])
            found.append(Migration(number, entry.name, sql, hashlib.sha256(sql.encode()).hexdigest()))
    return sorted(found, key=lambda migration: migration.number)


async def require_unicode(connection: Connection) -> None:
    """Raise `MigrationError` for a database that cannot hold every character of a customer's text."""
    encoding = (await connection.query("SELECT current_setting('server_encoding')"))[0][0]
    if encoding != "UTF8":
        raise MigrationError(
            f"the database's encoding is {encoding}, in which not every text can be stored: make another one with "
            "`CREATE DATABASE florin ENCODING 'UTF8' TEMPLATE template0`"
        )


async def migrate(connection: Connection) -> list[str]:
    """Bring the database up to date. Returns the names of the files applied now.

    A user without special rights may ask whether the database is up to date. Raises `MigrationError` if an applied file has
    changed or the database knows a file that this code does not.
    """
    await require_unicode(connection)
    is_current = not _pending(await applied(connection))
    if is_current and not (await connection.query(_MAY_CREATE_ROLES))[0][0]:
        return []
    await connection.execute(f"SELECT pg_advisory_lock({_LOCK})")
    try:
        await connection.execute(
            """
            CREATE TABLE IF NOT EXISTS schema_migrations (
                number integer PRIMARY KEY,
                name text NOT NULL,
                sha256 text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )
            """
        )
        await ensure_roles(connection)
        pending = _pending(await applied(connection))
        for migration in pending:
            await _apply(connection, migration)
        return [migration.name for migration in pending]
    finally:
        if not connection.closed:
            with trio.move_on_after(UNLOCK_SECONDS, shield=True):
                await connection.execute(f"SELECT pg_advisory_unlock({_LOCK})")


async def _apply(connection: Connection, migration: Migration) -> None:
    """Apply one file, again if running workers held its locks."""
    for _ in range(TRIES_MAX - 1):
        try:
            await _apply_once(connection, migration)
        except psycopg.errors.DeadlockDetected:
            continue
        else:
            return
    await _apply_once(connection, migration)


async def _apply_once(connection: Connection, migration: Migration) -> None:
    async with connection.atomic():
        if migration.number > ROLES_MIGRATION:
            await connection.execute(f"SET LOCAL ROLE {Role.MIGRATE}")
        await connection.execute(migration.sql)
        await connection.run(
            "INSERT INTO schema_migrations (number, name, sha256) VALUES ($1, $2, $3)",
            migration.number,
            migration.name,
            migration.sha256,
        )


async def applied(connection: Connection) -> dict[int, str]:
    """Checksums of the applied files, by number; empty for a database that was never migrated."""
    rows = await connection.query("SELECT to_regclass('schema_migrations') IS NOT NULL")
    if not rows[0][0]:
        return {}
    return dict(await connection.query("SELECT number, sha256 FROM schema_migrations ORDER BY number"))


async def status(connection: Connection) -> list[tuple[str, datetime | None]]:
    """Each migration of this code, and when it was applied. Raises `MigrationError` like `migrate`."""
    done = await applied(connection)
    _pending(done)
    times: dict[int, datetime] = dict(await connection.query("SELECT number, applied_at FROM schema_migrations")) if done else {}
    return [(migration.name, times.get(migration.number)) for migration in migrations()]


def _pending(done: dict[int, str]) -> list[Migration]:
    known = migrations()
    unknown = done.keys() - {migration.number for migration in known}
    if unknown:
        raise MigrationError(f"the database has migration {max(unknown)}, which is newer than this version: install a newer one")
    for migration in known:
        if done.get(migration.number, migration.sha256) != migration.sha256:
            raise MigrationError(f"{migration.name} was changed after it was applied: restore the file")
    return [migration for migration in known if migration.number not in done]


async def require_current(connection: Connection) -> None:
    """Raise `MigrationError` unless every migration has been applied, to a database that Florin can use."""
    await require_unicode(connection)
    pending = _pending(await applied(connection))
    if pending:
        raise MigrationError(f"the database lacks migration {pending[0].name}: run `florin migrate`")
