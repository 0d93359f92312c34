"""The four database roles. Every session works as one of them, whoever the login user is.

`migrate` owns the tables; `app` is the workers'; `console` is for operators' commands; `read` sees everything but secrets and
changes nothing. The roles cannot log in: a login user is made a member of the ones it may use (`GRANT florin_app TO ...`), and
each session sets its role at the start. Migration 0003 grants their privileges.
"""

from enum import StrEnum

import psycopg

from core.errors import DatabaseRefused
from server.db.connection import Connection


class Role(StrEnum):
    """The role of a session."""

    MIGRATE = "florin_migrate"
    APP = "florin_app"
    CONSOLE = "florin_console"
    READ = "florin_read"


async def ensure_roles(connection: Connection) -> None:
    """Create the missing roles, and make the login user a member of florin_migrate.

    Without CREATEROLE, raises `DatabaseRefused` with the SQL for an administrator.
    """
    known = {row[0] for row in await connection.query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'florin\\_%'")}
    missing = [role.value for role in Role if role.value not in known]
    try:
        for role in missing:
            try:
                await connection.execute(f"CREATE ROLE {role} NOLOGIN")
            except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                continue  # another database of this server is being migrated
        for role in Role:
            if not (await connection.query("SELECT pg_has_role(current_user, $1, 'MEMBER')", role.value))[0][0]:
                await connection.execute(f"GRANT {role} TO CURRENT_USER")
        may_create = "SELECT has_schema_privilege($1, 'public', 'CREATE') AND has_schema_privilege($1, 'public', 'USAGE')"
        if not (await connection.query(may_create, Role.MIGRATE.value))[0][0]:
            await connection.execute(f"GRANT USAGE, CREATE ON SCHEMA public TO {Role.MIGRATE}")
    except psycopg.errors.InsufficientPrivilege as error:
        grants = [f"GRANT {', '.join(Role)} TO <this user>", f"GRANT USAGE, CREATE ON SCHEMA public TO {Role.MIGRATE}"]
        statements = "; ".join([*(f"CREATE ROLE {role} NOLOGIN" for role in missing), *grants])
        raise DatabaseRefused(f"this user may not create the roles: ask an administrator to run: {statements}") from error
