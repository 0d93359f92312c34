"""The four database roles. Every session works as one of them, whoever logged in.

`migrate` owns the tables; `app` is the workers'; `console` is for operators' commands; `read` sees everything but secrets and can
change nothing. The roles cannot log in: a login user is made a member of those it may be (`GRANT florin_app TO ...`), and a
session takes its role at the start. What each may do is in migration 0003.
"""

from enum import StrEnum

import psycopg

from core.errors import DatabaseRefused
from server.db.connection import Connection


class Role(StrEnum):
    """Who a session is."""

    MIGRATE = "florin_migrate"
    APP = "florin_app"
    CONSOLE = "florin_console"
    READ = "florin_read"


async def ensure_roles(connection: Connection) -> None:
    """Make the roles that are missing, and this login user a member of florin_migrate.

    Raises `DatabaseRefused`, saying what an administrator has to run, where this user may not.
    """
    known = {row[0] for row in await connection.query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'florin\\_%'")}
    missing = [role.value for role in Role if role.value not in known]
    try:
        for role in missing:
            try:
                await connection.execute(f"CREATE ROLE {role} NOLOGIN")
            except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                continue  # another database of this server is migrated at the same time
        for role in Role:
            if not (await connection.query("SELECT pg_has_role(current_user, $1, 'MEMBER')", role.value))[0][0]:
                await connection.execute(f"GRANT {role} TO CURRENT_USER")
        may_create = "SELECT has_schema_privilege($1, 'public', 'CREATE') AND has_schema_privilege($1, 'public', 'USAGE')"
        if not (await connection.query(may_create, Role.MIGRATE.value))[0][0]:
            await connection.execute(f"GRANT USAGE, CREATE ON SCHEMA public TO {Role.MIGRATE}")
    except psycopg.errors.InsufficientPrivilege as error:
        grants = [f"GRANT {', '.join(Role)} TO <this user>", f"GRANT USAGE, CREATE ON SCHEMA public TO {Role.MIGRATE}"]
        statements = "; ".join([*(f"CREATE ROLE {role} NOLOGIN" for role in missing), *grants])
        raise DatabaseRefused(f"this user may not set up the roles: have an administrator run: {statements}") from error
