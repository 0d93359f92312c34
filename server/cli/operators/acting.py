"""The operator who acts at the command line: the session of `florin operator login`, or a program's key.

A session's token is in a file of its own, for its owner only, named by the database and the operator, so that sessions of several
databases and operators do not disturb each other.
"""

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec
import typer

from core import operators as core_operators
from core.errors import FlorinError, RateLimited, Unauthenticated
from core.ids import MerchantId
from server.atomic_files import write_private
from server.cli.options import find_key_file, running_instance, with_database
from server.clock import utc_now
from server.db.connection import Connection
from server.db.merchants.audit import Act
from server.db.operators.operators import last_totp_step
from server.flows.operators.sessions import confirm, operator_of
from server.passwords import STEP_SECONDS, STEPS_OFF, totp_code
from server.process.demo import DemoOperator, demo_operators
from server.sealing import Sealer
from server.settings import environment, state_directory
from server.uuid7 import uuid7

Operator = Annotated[
    str | None,
    typer.Option("--operator", help="The operator to act as, if several are logged in here.", show_default=False),
]
Totp = Annotated[
    str | None,
    typer.Option("--totp", help="A code of your second factor; asked for when it is needed.", show_default=False),
]
_FIRST_EPOCH = "SELECT epoch FROM sequence_epochs ORDER BY started_at, epoch LIMIT 1"


class SavedSession(msgspec.Struct, frozen=True):
    """A session as it is kept in its file."""

    operator: str
    token: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Acting:
    """The operator who acts, and makes the entries of the audit log. `name` is that of the act in the table of rights."""

    operator: core_operators.Operator
    name: str

    def act(
        self,
        merchant_id: MerchantId,
        detail: str,
        *,
        action: str | None = None,
        payment_id: UUID | None = None,
        subject: str | None = None,
    ) -> Act:
        """The entry of this act, now."""
        return Act(
            id=uuid7(),
            merchant_id=merchant_id,
            actor=self.operator.name,
            action=action or self.name,
            detail=detail,
            at=utc_now(),
            operator_id=self.operator.id,
            payment_id=payment_id,
            subject=subject,
        )


def acting(
    name: str,
    url: str,
    operator: str | None,
    *,
    totp: str | None = None,
    data_dir: Path | None = None,
    key_file: Path | None = None,
    database_url: str | None = None,
) -> Acting:
    """The operator who does this, with a second factor if it moves money. The key file is only needed for that.

    Raises `Unauthenticated` if nobody is logged in, `Forbidden` if the role lacks the right.
    """

    async def find(connection: Connection) -> tuple[str, core_operators.Operator, bool]:
        token = await _token(connection, operator)
        return token, *await operator_of(connection, token, name, now=utc_now())

    token, found, needs_factor = with_database(url, find)
    if needs_factor:
        sealer = Sealer.from_file(find_key_file(data_dir, key_file, database_url))
        demo = demo_of(found.name, data_dir, database_url) if totp is None else None
        code = None if demo is not None else totp or ask_for_code(found.name, why="this moves money and ")

        async def give(connection: Connection) -> None:
            given = code if code is not None else await demo_code(connection, found.name, str(demo and demo.totp_secret))
            await confirm(connection, sealer, token, code=given, now=utc_now())

        with_database(url, give)
    return Acting(found, name)


def ask_for_code(name: str, *, why: str = "this ") -> str:
    """Ask at the terminal. Raises `Unauthenticated` if nobody is there."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Unauthenticated(f"{why}needs a code of your second factor: give --totp CODE", code="code_missing")
    code: str = typer.prompt(f"Code of {name}'s second factor", err=True)
    return code


def demo_of(name: str, data_dir: Path | None, database_url: str | None) -> DemoOperator | None:
    """The demo operator of that name of a running instance, whose secrets this user can read; None for any other."""
    if database_url or (data_dir is None and environment("DATABASE_URL")):
        return None
    with contextlib.suppress(FlorinError):
        directory = running_instance(data_dir, is_demo=True).data_directory
        return next((one for one in demo_operators(Path(directory)) if one.name == name), None) if directory else None
    return None


async def demo_code(connection: Connection, name: str, secret: str) -> str:
    """The next code of a demo operator that was not used yet. Raises `RateLimited` if that is for a later time."""
    now = utc_now()
    step, used = int(now.timestamp()) // STEP_SECONDS, await last_totp_step(connection, name)
    ahead = max(used + 1 - step, 0)
    if ahead > max(STEPS_OFF):
        seconds = (used + 1 - max(STEPS_OFF)) * STEP_SECONDS - int(now.timestamp())
        raise RateLimited(f"{name} has used the codes of this moment: try again in {seconds} s", code="code_used")
    return totp_code(secret, now, steps_ahead=ahead)


async def _token(connection: Connection, operator: str | None) -> str:
    """The token to use. Raises `Unauthenticated`."""
    key = environment("OPERATOR_KEY")
    if key is not None and operator is None:
        return key
    now = utc_now()
    saved = [one for one in read_sessions(await database_id(connection)) if one.expires_at > now]
    chosen = [one for one in saved if operator in (None, one.operator)]
    if not chosen:
        whom = f"{operator} is not logged in here" if operator else "nobody is logged in here"
        raise Unauthenticated(f"{whom}: log in with `florin operator login {operator or 'NAME'}`", code="not_logged_in")
    if len(chosen) > 1:
        names = ", ".join(sorted(one.operator for one in chosen))
        raise Unauthenticated(f"several operators are logged in here: choose one with --operator: {names}", code="which_operator")
    return chosen[0].token


async def database_id(connection: Connection) -> UUID:
    """A name of this database that outlasts restarts and moves."""
    found: UUID = (await connection.query(_FIRST_EPOCH))[0][0]
    return found


def session_file(database: UUID, name: str) -> Path:
    """The file of a session."""
    return state_directory() / "sessions" / f"{database.hex}.{name}.json"


def save_session(database: UUID, session: SavedSession) -> Path:
    """Keep a session in its file."""
    path = session_file(database, session.operator)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, msgspec.json.encode(session))
    return path


def read_sessions(database: UUID) -> Iterable[SavedSession]:
    """The sessions of a database that this user has."""
    for path in sorted((state_directory() / "sessions").glob(f"{database.hex}.*.json")):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            yield msgspec.json.decode(path.read_bytes(), type=SavedSession)
