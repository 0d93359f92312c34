"""Sessions of operators: logging in, the operator of a session or of a program's key, and the second factor for moving money.

Every refusal of a login says the same, whatever was wrong. Attempts are counted before anything is compared, and after a few
failures they have to wait, longer each time. A code counts once. A second factor that was given for moving money counts for
`CONFIRMED_SECONDS`, so that somebody who mends several payments is asked once.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from core.errors import Forbidden, RateLimited, Unauthenticated
from core.operators import ACTS, Operator, Right, may, roles_that_may
from server.db.alerts import NOBODY
from server.db.connection import Connection
from server.db.merchants.audit import Act, record_act
from server.db.operators.operators import (
    TOTP_TABLE,
    Secrets,
    begin_attempt,
    end_attempt,
    find_service,
    use_recovery_code,
    use_totp_step,
)
from server.db.operators.sessions import Session, add_session, confirm_session, end_session, find_session
from server.passwords import is_password, recovery_hash, step_of_code
from server.sealing import Sealer
from server.uuid7 import uuid7

SESSION_SECONDS = 8 * 3_600
CONFIRMED_SECONDS = 300
_TOKEN, _KEY = "fos", "fok"


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A new session: its token is shown to nobody and kept in a file of its operator's."""

    operator: Operator
    token: str
    expires_at: datetime


def new_key() -> str:
    """A new key for a program."""
    return f"{_KEY}_{secrets.token_hex(32)}"


def token_hash(token: str) -> bytes:
    """The stored hash of a token or key. Its 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).digest()


async def log_in(connection: Connection, sealer: Sealer, *, name: str, password: str, code: str, now: datetime) -> LoggedIn:
    """Begin a session. `code` is of TOTP, or a recovery code. Raises `Unauthenticated`, or `RateLimited` after failures."""
    attempt = await begin_attempt(connection, name)
    if isinstance(attempt, datetime):
        raise _locked(attempt, now)
    is_right = await is_password(password, attempt.password_hash if attempt is not None else None)
    if attempt is None or not is_right or attempt.is_disabled or not await _is_code(connection, sealer, attempt, code, now):
        if attempt is not None:
            await record_act(connection, _act(attempt.operator, "operator.login_failed", now))
        raise Unauthenticated("wrong name, password or code", code="login_failed")
    token = f"{_TOKEN}_{secrets.token_hex(32)}"
    expires_at = now + timedelta(seconds=SESSION_SECONDS)
    async with connection.atomic():
        await end_attempt(connection, attempt.operator.id, now=now)
        await add_session(connection, attempt.operator, token_sha256=token_hash(token), now=now, expires_at=expires_at)
        await record_act(connection, _act(attempt.operator, "operator.login", now))
    return LoggedIn(attempt.operator, token, expires_at)


async def _is_code(connection: Connection, sealer: Sealer, known: Secrets, code: str, now: datetime) -> bool:
    operator_id, given = known.operator.id, code.strip()
    if not given.isdigit():
        return await use_recovery_code(connection, operator_id, recovery_hash(given), now=now)
    return await _is_totp(connection, sealer, operator_id, known.sealed_totp_secret, given, now)


async def _is_totp(connection: Connection, sealer: Sealer, operator_id: UUID, sealed: bytes, code: str, now: datetime) -> bool:
    step = step_of_code(sealer.open(sealed, table=TOTP_TABLE, row=operator_id), code, now)
    return step is not None and await use_totp_step(connection, operator_id, step)


async def log_out(connection: Connection, token: str, *, now: datetime) -> None:
    """End a session."""
    await end_session(connection, token_hash(token), now=now)


async def operator_of(connection: Connection, token: str, act: str, *, now: datetime) -> tuple[Operator, bool]:
    """The operator of a session's token or of a program's key, who may do this; and whether a second factor is still needed.

    Raises `Unauthenticated` if the session is over, `Forbidden` if the role lacks the right.
    """
    session: Session | None = None
    if token.startswith(f"{_KEY}_"):
        operator = await find_service(connection, token_hash(token), now=now)
    else:
        session = await find_session(connection, token_hash(token), now=now)
        operator = session.operator if session is not None else None
    if operator is None and token.startswith(f"{_KEY}_"):
        raise Unauthenticated("FLORIN_OPERATOR_KEY is unknown, or its operator is disabled", code="session_ended")
    if operator is None:
        raise Unauthenticated("your session has ended: log in with `florin operator login NAME`", code="session_ended")
    if not may(operator.role, act):
        roles = " or ".join(roles_that_may(act))
        raise Forbidden(f"{operator.name} is {operator.role}, and this takes {roles}", code="role_lacks_right")
    return operator, ACTS[act] is Right.MONEY and (session is None or not session.is_confirmed)


async def confirm(connection: Connection, sealer: Sealer, token: str, *, code: str, now: datetime) -> None:
    """Take a second factor for the money that this session moves next. Raises `Unauthenticated` for a wrong code, `RateLimited`
    after several.
    """
    session = await find_session(connection, token_hash(token), now=now)
    if session is None:
        raise Unauthenticated("your session has ended: log in with `florin operator login NAME`", code="session_ended")
    attempt = await begin_attempt(connection, session.operator.name)
    if isinstance(attempt, datetime):
        raise _locked(attempt, now)
    if attempt is None or not await _is_code(connection, sealer, attempt, code, now):
        await record_act(connection, _act(session.operator, "operator.confirm_failed", now))
        raise Unauthenticated("wrong code", code="wrong_code")
    await end_attempt(connection, session.operator.id, now=now)
    await confirm_session(connection, token_hash(token), until=now + timedelta(seconds=CONFIRMED_SECONDS))


def _act(operator: Operator, action: str, now: datetime) -> Act:
    return Act(
        id=uuid7(),
        merchant_id=NOBODY,
        actor=operator.name,
        action=action,
        detail="",
        at=now,
        operator_id=operator.id,
        subject=operator.name,
    )


def _locked(until: datetime, now: datetime) -> RateLimited:
    seconds = max(round((until - now).total_seconds()), 1)
    return RateLimited(f"too many failures: try again in {seconds} s", code="locked_out", retry_after_seconds=seconds)
