"""`florin operator`: the people and programs that run this instance, and their sessions."""

import sys
from pathlib import Path
from typing import Annotated

import segno
import typer

from core.errors import Forbidden, NotFound, Unprocessable
from core.operators import SERVICE_ROLES, Operator, OperatorRole
from server.cli.groups import group
from server.cli.operators.acting import (
    Acting,
    SavedSession,
    acting,
    ask_for_code,
    database_id,
    demo_code,
    demo_of,
    read_sessions,
    save_session,
    session_file,
)
from server.cli.operators.acting import Operator as OperatorOption
from server.cli.options import DatabaseUrl, DataDirectory, KeyFile, find_database, find_key_file, with_database
from server.cli.output import Output, Rows
from server.clock import utc_now
from server.db.alerts import NOBODY
from server.db.connection import Connection
from server.db.merchants.audit import Act, record_act
from server.db.operators import operators as rows
from server.db.operators.operators import TOTP_TABLE
from server.flows.operators.sessions import LoggedIn, log_in, log_out, new_key, token_hash
from server.passwords import (
    hash_password,
    recovery_codes,
    recovery_hash,
    require_password,
    totp_secret,
    totp_uri,
)
from server.sealing import Sealer
from server.uuid7 import uuid7

app = group("Add operators, give them roles, log in and out.")
_console = Output()
RECOVERY_CODES_LEFT_MIN = 3

Name = Annotated[str, typer.Argument(help="The operator's name, like ada.", metavar="NAME")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="Read the password from this file instead of asking.", show_default=False)
]


@app.command("add")
def add(
    name: Name,
    role: Annotated[OperatorRole, typer.Option(help="What the operator may do: see deploy/README.md.")] = OperatorRole.SUPPORT,
    service: Annotated[bool, typer.Option("--service", help="A program: it gets a key, and moves no money.")] = False,
    password_file: PasswordFile = None,
    operator: OperatorOption = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Add an operator. While there is no admin, whoever can read the sealing key adds one, without logging in."""
    _require_name(name)
    if service and role not in SERVICE_ROLES:
        raise Unprocessable(f"a program cannot be {role}, which moves money: give --role {' or '.join(SERVICE_ROLES)}")
    url = find_database(data_dir, database_url)
    sealer = Sealer.from_file(find_key_file(data_dir, key_file, database_url))
    new = Operator(id=uuid7(), name=name, role=role, is_service=service)
    actor = _first_admin(url, new) or acting("operator.add", url, operator)
    password = None if service else _password(password_file, twice=True)
    secret, codes, key = totp_secret(), recovery_codes(), new_key()

    async def work(connection: Connection) -> bool:
        hashed = await hash_password(password) if password is not None else None
        async with connection.atomic():
            added = await rows.add_operator(
                connection,
                new,
                password_hash=hashed,
                sealed_totp_secret=None if service else sealer.seal(secret, table=TOTP_TABLE, row=new.id),
                key_sha256=token_hash(key) if service else None,
                recovery_hashes=[] if service else [recovery_hash(one) for one in codes],
                now=utc_now(),
            )
            if added:
                await record_act(connection, _made(actor, new, "operator.add", f"{name}, {role}"))
        return added

    if not with_database(url, work):
        raise Unprocessable(f"there is an operator {name} already: `florin operator list` shows them")
    if service:
        _console.print(f"{name} is {role}; its key, for FLORIN_OPERATOR_KEY:\n{key}\nKeep it now: it is not shown again.")
        return
    _show_factor(name, secret, codes)


@app.command("list")
def show(database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """List all operators."""
    found = with_database(find_database(data_dir, database_url), rows.list_operators)
    if not found:
        _console.print("There are no operators yet: add the first with `florin operator add NAME --role admin`.")
        return
    table = Rows("name", "role", "kind", "state", "last seen", "since")
    now = utc_now()
    for one in found:
        state = "disabled" if one.disabled_at else "locked out" if one.locked_until and one.locked_until > now else "active"
        seen = f"{one.last_seen_at:%Y-%m-%d %H:%M}" if one.last_seen_at else "never"
        kind = "program" if one.operator.is_service else "person"
        table.add(one.operator.name, one.operator.role, kind, state, seen, one.created_at.date().isoformat())
    _console.print(table)


@app.command("role")
def role_of(
    name: Name,
    role: Annotated[OperatorRole, typer.Argument(help="viewer, support, finance or admin.")],
    operator: OperatorOption = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Change an operator's role, from the next act on."""
    url = find_database(data_dir, database_url)
    actor = acting("operator.role", url, operator)
    if name == actor.operator.name and role is not OperatorRole.ADMIN:
        raise Forbidden(f"you are {name}: another admin has to change your role")

    async def work(connection: Connection) -> Operator | None:
        known = {one.operator.name: one.operator for one in await rows.list_operators(connection)}
        if name in known and known[name].is_service and role not in SERVICE_ROLES:
            raise Unprocessable(f"{name} is a program, which moves no money: give {' or '.join(SERVICE_ROLES)}")
        async with connection.atomic():
            changed = await rows.set_role(connection, name, role)
            if changed is not None:
                await record_act(connection, _made(actor, changed, "operator.role", f"{name}: {role}"))
        return changed

    _require(with_database(url, work), name)
    _console.print(f"{name} is {role}")


@app.command("disable")
def disable(
    name: Name, operator: OperatorOption = None, database_url: DatabaseUrl = None, data_dir: DataDirectory = None
) -> None:
    """Disable an operator at once, and end the sessions. What was done stays in the audit log."""
    _set_disabled(name, operator, find_database(data_dir, database_url), disabled=True)
    _console.print(f"{name} is disabled")


@app.command("enable")
def enable(name: Name, operator: OperatorOption = None, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Enable an operator again, and forget failed logins."""
    _set_disabled(name, operator, find_database(data_dir, database_url), disabled=False)
    _console.print(f"{name} is enabled")


def _set_disabled(name: str, operator: str | None, url: str, *, disabled: bool) -> None:
    action = "operator.disable" if disabled else "operator.enable"
    actor = acting(action, url, operator)
    if disabled and name == actor.operator.name:
        raise Forbidden(f"you are {name}: another admin has to disable you")

    async def work(connection: Connection) -> Operator | None:
        async with connection.atomic():
            changed = await rows.set_disabled(connection, name, at=utc_now() if disabled else None)
            if changed is not None:
                await record_act(connection, _made(actor, changed, action, name))
        return changed

    _require(with_database(url, work), name)


@app.command("reset-totp")
def reset_totp(
    name: Name,
    operator: OperatorOption = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Give an operator a new second factor and new recovery codes, and end the sessions."""
    url = find_database(data_dir, database_url)
    sealer = Sealer.from_file(find_key_file(data_dir, key_file, database_url))
    actor = acting("operator.reset-totp", url, operator)
    secret, codes = totp_secret(), recovery_codes()

    async def work(connection: Connection) -> Operator | None:
        known = {one.operator.name: one.operator for one in await rows.list_operators(connection)}
        found = known.get(name)
        if found is None or found.is_service:
            return None
        async with connection.atomic():
            sealed = sealer.seal(secret, table=TOTP_TABLE, row=found.id)
            hashes = [recovery_hash(one) for one in codes]
            await rows.reset_second_factor(connection, found.id, sealed_totp_secret=sealed, recovery_hashes=hashes, now=utc_now())
            await record_act(connection, _made(actor, found, "operator.reset-totp", name))
        return found

    _require(with_database(url, work), name)
    _show_factor(name, secret, codes)


@app.command("login")
def login(
    name: Name,
    password_file: PasswordFile = None,
    totp: Annotated[
        str | None,
        typer.Option(
            "--totp", help="A code of your second factor, or a recovery code; else it is asked for.", show_default=False
        ),
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Log in for eight hours. The demo operators of `florin up` need no password here."""
    _require_name(name)
    url = find_database(data_dir, database_url)
    sealer = Sealer.from_file(find_key_file(data_dir, key_file, database_url))
    demo = demo_of(name, data_dir, database_url) if password_file is None and totp is None else None
    password = demo.password if demo is not None else _password(password_file, twice=False)
    code = None if demo is not None else totp or ask_for_code(name)

    async def work(connection: Connection) -> tuple[LoggedIn, Path, int]:
        given = code if code is not None else await demo_code(connection, name, str(demo and demo.totp_secret))
        session = await log_in(connection, sealer, name=name, password=password, code=given, now=utc_now())
        saved = SavedSession(session.operator.name, session.token, session.expires_at)
        path = save_session(await database_id(connection), saved)
        return session, path, await rows.count_recovery_codes(connection, session.operator.id)

    session, path, left = with_database(url, work)
    _console.print(f"{name}, {session.operator.role}, until {session.expires_at:%Y-%m-%d %H:%M} UTC; the session is in {path}")
    if left < RECOVERY_CODES_LEFT_MIN and demo is None:
        _console.print(f"only {left} recovery codes are left: an admin gives new ones with `florin operator reset-totp {name}`")


@app.command("logout")
def logout(operator: OperatorOption = None, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """End your session, or with several all of them; with --operator only that one's."""

    async def work(connection: Connection) -> list[str]:
        database, ended = await database_id(connection), []
        for one in list(read_sessions(database)):
            if operator in (None, one.operator):
                await log_out(connection, one.token, now=utc_now())
                session_file(database, one.operator).unlink(missing_ok=True)
                ended.append(one.operator)
        return ended

    ended = with_database(find_database(data_dir, database_url), work)
    _console.print(f"logged out: {', '.join(ended)}" if ended else "nobody was logged in here")


def _first_admin(url: str, new: Operator) -> Acting | None:
    """The first admin, who adds itself; None if there is an active one."""
    if with_database(url, rows.has_active_admin):
        return None
    if new.role is not OperatorRole.ADMIN or new.is_service:
        raise Unprocessable("there is no admin yet: add the first operator with --role admin")
    return Acting(new, "operator.add")


def _made(actor: Acting, operator: Operator, action: str, detail: str) -> Act:
    return actor.act(NOBODY, detail, action=action, subject=operator.name)


def _require(operator: Operator | None, name: str) -> None:
    if operator is None:
        raise NotFound(f"there is no operator {name}: `florin operator list` shows them")


def _require_name(name: str) -> None:
    is_fine = 1 <= len(name) <= 63 and name[0].isalpha() and all(one.isalnum() or one in "._-" for one in name)
    if not is_fine or not name.isascii() or name != name.lower():
        raise Unprocessable("an operator's name has 1 to 63 of a-z, 0-9, dot, hyphen and underscore, and begins with a letter")


def _password(file: Path | None, *, twice: bool) -> str:
    """The password, from a file or the terminal. Raises `Unprocessable`."""
    if file is not None:
        text = file.read_text().rstrip("\r\n")
    elif sys.stdin.isatty():
        text = typer.prompt("Password", hide_input=True, confirmation_prompt=twice, err=True)
    else:
        raise Unprocessable("give --password-file, because nobody is there to be asked")
    return require_password(text) if twice else text


def _show_factor(name: str, secret: str, codes: list[str]) -> None:
    uri = totp_uri(secret, name)
    if _console.is_terminal:
        segno.make(uri, error="l").terminal(out=sys.stdout, compact=True)
    _console.print(f"second factor of {name}, for an authenticator app:\n{uri}\nas text: {secret}")
    _console.print("recovery codes, each for one login without the app:\n" + "\n".join(codes))
    _console.print(f"Keep these now: they are not shown again. Then: florin operator login {name}")
