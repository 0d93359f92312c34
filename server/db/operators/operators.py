"""Operators: their rows, passwords and second factors, all hashed or sealed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.operators import Operator, OperatorRole
from server.db.connection import Connection

TOTP_TABLE = "operators.totp_secret"
"""The place for which TOTP secrets are sealed."""

FREE_FAILURES = 5
"""The failed logins that are not answered with a pause."""

PAUSE_SECONDS, PAUSE_SECONDS_MAX = 30, 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRow:
    """An operator as it is listed."""

    operator: Operator
    created_at: datetime
    last_seen_at: datetime | None
    disabled_at: datetime | None
    locked_until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """The secrets that a login is checked against."""

    operator: Operator
    password_hash: str
    sealed_totp_secret: bytes
    is_disabled: bool


async def add_operator(
    connection: Connection,
    operator: Operator,
    *,
    password_hash: str | None,
    sealed_totp_secret: bytes | None,
    key_sha256: bytes | None,
    recovery_hashes: Sequence[bytes],
    now: datetime,
) -> bool:
    """Store an operator in the caller's transaction. Returns False if there is one of that name."""
    added = await connection.run(
        """
        INSERT INTO operators (id, name, role, is_service, password_hash, sealed_totp_secret, key_sha256, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name) DO NOTHING
        """,
        operator.id,
        operator.name,
        operator.role.value,
        operator.is_service,
        password_hash,
        sealed_totp_secret,
        key_sha256,
        now,
    )
    if added:
        await _add_recovery_codes(connection, operator.id, recovery_hashes)
    return added == 1


async def _add_recovery_codes(connection: Connection, operator_id: UUID, hashes: Sequence[bytes]) -> None:
    await connection.run(
        "INSERT INTO operator_recovery_codes (operator_id, code_sha256) SELECT $1, unnest($2::bytea[])", operator_id, list(hashes)
    )


async def list_operators(connection: Connection) -> list[OperatorRow]:
    """All operators by name."""
    rows = await connection.query(
        """
        SELECT id, name, role, is_service, created_at, last_seen_at, disabled_at, locked_until FROM operators ORDER BY name
        """
    )
    return [
        OperatorRow(
            operator=Operator(id=row[0], name=row[1], role=OperatorRole(row[2]), is_service=row[3]),
            created_at=row[4],
            last_seen_at=row[5],
            disabled_at=row[6],
            locked_until=row[7],
        )
        for row in rows
    ]


async def has_active_admin(connection: Connection) -> bool:
    """Return whether an operator exists who can make others."""
    rows = await connection.query("SELECT EXISTS (SELECT FROM operators WHERE role = 'admin' AND disabled_at IS NULL)")
    return bool(rows[0][0])


async def begin_attempt(connection: Connection, name: str) -> Secrets | datetime | None:
    """Count an attempt to log in before anything is compared, so that many at once are no way around the pause. Returns the time
    at which the next attempt is allowed if this one is not, or None if there is no such person.
    """
    rows = await connection.query(
        f"""
        UPDATE operators
           SET failures = failures + 1,
               locked_until = CASE WHEN failures >= {FREE_FAILURES} THEN now() + make_interval(secs =>
                   least({PAUSE_SECONDS} * 2 ^ least(failures - {FREE_FAILURES}, 10), {PAUSE_SECONDS_MAX})) END
         WHERE name = $1 AND NOT is_service AND (locked_until IS NULL OR locked_until <= now())
        RETURNING id, name, role, password_hash, sealed_totp_secret, disabled_at IS NOT NULL
        """,  # noqa: S608 - numbers of ours
        name,
    )
    for operator_id, found, role, password_hash, sealed, is_disabled in rows:
        operator = Operator(id=operator_id, name=found, role=OperatorRole(role))
        return Secrets(operator=operator, password_hash=password_hash, sealed_totp_secret=sealed, is_disabled=is_disabled)
    locked = await connection.query("SELECT locked_until FROM operators WHERE name = $1 AND locked_until > now()", name)
    return locked[0][0] if locked else None


async def end_attempt(connection: Connection, operator_id: UUID, *, now: datetime) -> None:
    """Forget the failures: this attempt succeeded."""
    await connection.run(
        "UPDATE operators SET failures = 0, locked_until = NULL, last_seen_at = $2 WHERE id = $1", operator_id, now
    )


async def use_totp_step(connection: Connection, operator_id: UUID, step: int) -> bool:
    """Use the code of an interval. Returns False if that one, or a later one, was used before."""
    return await connection.run("UPDATE operators SET totp_step = $2 WHERE id = $1 AND totp_step < $2", operator_id, step) == 1


async def last_totp_step(connection: Connection, name: str) -> int:
    """The last interval whose code an operator has used."""
    rows = await connection.query("SELECT totp_step FROM operators WHERE name = $1", name)
    return int(rows[0][0]) if rows else 0


async def use_recovery_code(connection: Connection, operator_id: UUID, code_sha256: bytes, *, now: datetime) -> bool:
    """Use a recovery code. Returns False if there is no such unused one."""
    return (
        await connection.run(
            """
        UPDATE operator_recovery_codes SET used_at = $3 WHERE operator_id = $1 AND code_sha256 = $2 AND used_at IS NULL
        """,
            operator_id,
            code_sha256,
            now,
        )
        == 1
    )


async def count_recovery_codes(connection: Connection, operator_id: UUID) -> int:
    """The number of unused recovery codes."""
    rows = await connection.query(
        "SELECT count(*) FROM operator_recovery_codes WHERE operator_id = $1 AND used_at IS NULL", operator_id
    )
    return int(rows[0][0])


async def find_service(connection: Connection, key_sha256: bytes, *, now: datetime) -> Operator | None:
    """The program whose key has this hash, unless it is disabled."""
    rows = await connection.query(
        """
        UPDATE operators SET last_seen_at = $2 WHERE key_sha256 = $1 AND disabled_at IS NULL RETURNING id, name, role
        """,
        key_sha256,
        now,
    )
    return Operator(id=rows[0][0], name=rows[0][1], role=OperatorRole(rows[0][2]), is_service=True) if rows else None


async def set_role(connection: Connection, name: str, role: OperatorRole) -> Operator | None:
    """Change a role, which counts from the next act on. Returns None if there is no such operator."""
    rows = await connection.query(
        "UPDATE operators SET role = $2 WHERE name = $1 RETURNING id, name, role, is_service", name, role.value
    )
    return _operator(rows)


async def set_disabled(connection: Connection, name: str, *, at: datetime | None) -> Operator | None:
    """Disable an operator and end the sessions, or enable one. Returns None if there is no such operator."""
    rows = await connection.query(
        """
        WITH ended AS (
            UPDATE operator_sessions s SET ended_at = $2
              FROM operators o WHERE o.name = $1 AND s.operator_id = o.id AND s.ended_at IS NULL AND $2::timestamptz IS NOT NULL
        )
        UPDATE operators SET disabled_at = $2, failures = 0, locked_until = NULL WHERE name = $1
        RETURNING id, name, role, is_service
        """,
        name,
        at,
    )
    return _operator(rows)


async def reset_second_factor(
    connection: Connection, operator_id: UUID, *, sealed_totp_secret: bytes, recovery_hashes: Sequence[bytes], now: datetime
) -> None:
    """Replace the TOTP secret and all recovery codes, and end the sessions."""
    await connection.run(
        "UPDATE operators SET sealed_totp_secret = $2, totp_step = 0, failures = 0, locked_until = NULL WHERE id = $1",
        operator_id,
        sealed_totp_secret,
    )
    await connection.run(
        "UPDATE operator_recovery_codes SET used_at = $2 WHERE operator_id = $1 AND used_at IS NULL", operator_id, now
    )
    await _add_recovery_codes(connection, operator_id, recovery_hashes)
    await connection.run(
        "UPDATE operator_sessions SET ended_at = $2 WHERE operator_id = $1 AND ended_at IS NULL", operator_id, now
    )


def _operator(rows: Sequence[tuple[UUID, str, str, bool]]) -> Operator | None:
    return Operator(id=rows[0][0], name=rows[0][1], role=OperatorRole(rows[0][2]), is_service=rows[0][3]) if rows else None
