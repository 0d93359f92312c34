"""Operators' sessions: only a hash of each token is stored."""

from dataclasses import dataclass
from datetime import datetime

from core.operators import Operator, OperatorRole
from server.db.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session that is valid now. `is_confirmed`: a second factor was given for it a moment ago."""

    operator: Operator
    sealed_totp_secret: bytes
    is_confirmed: bool
    expires_at: datetime


async def add_session(
    connection: Connection, operator: Operator, *, token_sha256: bytes, now: datetime, expires_at: datetime
) -> None:
    """Store a session."""
    await connection.run(
        "INSERT INTO operator_sessions (token_sha256, operator_id, created_at, expires_at) VALUES ($1, $2, $3, $4)",
        token_sha256,
        operator.id,
        now,
        expires_at,
    )


async def find_session(connection: Connection, token_sha256: bytes, *, now: datetime) -> Session | None:
    """The session of a token, unless it has ended, expired, or its operator is disabled."""
    rows = await connection.query(
        """
        UPDATE operators o SET last_seen_at = $2
          FROM operator_sessions s
         WHERE s.token_sha256 = $1 AND s.ended_at IS NULL AND s.expires_at > $2 AND o.id = s.operator_id AND o.disabled_at IS NULL
        RETURNING o.id, o.name, o.role, o.sealed_totp_secret, coalesce(s.confirmed_until > $2, false), s.expires_at
        """,
        token_sha256,
        now,
    )
    for operator_id, name, role, sealed, is_confirmed, expires_at in rows:
        operator = Operator(id=operator_id, name=name, role=OperatorRole(role))
        return Session(operator=operator, sealed_totp_secret=sealed, is_confirmed=is_confirmed, expires_at=expires_at)
    return None


async def confirm_session(connection: Connection, token_sha256: bytes, *, until: datetime) -> None:
    """Record that a second factor was given."""
    await connection.run("UPDATE operator_sessions SET confirmed_until = $2 WHERE token_sha256 = $1", token_sha256, until)


async def end_session(connection: Connection, token_sha256: bytes, *, now: datetime) -> None:
    """End a session."""
    await connection.run(
        "UPDATE operator_sessions SET ended_at = $2 WHERE token_sha256 = $1 AND ended_at IS NULL", token_sha256, now
    )
