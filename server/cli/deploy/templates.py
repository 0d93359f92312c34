"""The texts of the files that `florin init` makes, and of what to do next."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from server.db.roles import Role

ROLES_BY_LOGIN = {"owner": tuple(Role), "worker": (Role.APP,), "operator": (Role.CONSOLE, Role.READ)}
"""The logins, by the end of their names."""

_UNIT = """\
# Made by `florin init`. `systemctl link` this file, then `systemctl enable --now florin`. The program must lie where others can
# read it, as below /opt; the key and the certificate need not, because systemd hands them over.
[Unit]
Description=Florin payment server
Wants=network-online.target
After=network-online.target postgresql.service

[Service]
Type=exec
{user}
EnvironmentFile={directory}/florin.env
{credentials}
ExecStart="{program}" serve {arguments}
Restart=always
RestartSec=2
# SIGTERM drains: running requests are finished first.
KillMode=mixed
TimeoutStopSec=30
LimitNOFILE=1048576
NoNewPrivileges=true
PrivateTmp=true
ProtectHome=read-only
ProtectSystem=strict
ProtectKernelModules=true
ProtectKernelTunables=true
RestrictSUIDSGID=true

[Install]
WantedBy=multi-user.target
"""


def roles(passwords: Mapping[str, str], *, prefix: str, database: str) -> str:
    """The SQL that makes Florin's roles and an instance's logins, for an administrator of the database who may create roles.

    It is done as a whole or not at all. Logins are those of the whole server, so one that exists is left alone: another instance
    may use it.
    """
    is_another = f"current_database() <> {_quoted(database)}"
    lines = [
        "-- Made by `florin init`: Florin's roles and their logins. Run it with psql, as an administrator who may create roles.",
        "-- It contains passwords: remove it afterwards.",
        "\\set ON_ERROR_STOP on",
        "BEGIN;",
        _raised(is_another, f"this file is for the database {database}: name that one in the administrator's address"),
        *(_created(role) for role in Role),
    ]
    for name, password in passwords.items():
        login = f"{prefix}_{name}"
        advice = "if it is another Florin's, make the files again with another `florin init --login-prefix`; else drop it"
        lines += [
            _raised(f"EXISTS (SELECT FROM pg_roles WHERE rolname = '{login}')", f"the login {login} exists: {advice}"),
            f"CREATE ROLE {login} LOGIN PASSWORD '{password}';",
            f"GRANT {', '.join(ROLES_BY_LOGIN[name])} TO {login};",
        ]
    return "\n".join([*lines, f"GRANT USAGE, CREATE ON SCHEMA public TO {Role.MIGRATE};", "COMMIT;", ""])


def _raised(condition: str, said: str) -> str:
    return f"DO $$ BEGIN IF {condition} THEN RAISE EXCEPTION USING MESSAGE = {_quoted(said)}; END IF; END $$;"


def _created(role: Role) -> str:
    is_missing = f"NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}')"
    return f"DO $$ BEGIN IF {is_missing} THEN CREATE ROLE {role} NOLOGIN; END IF; END $$;"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def unit(directory: Path, *, user: str, arguments: str, tls: tuple[str, str] | None) -> str:
    """The systemd unit of the workers. `tls` are the files of a certificate and its key."""
    handed = {"sealing.key": f"{directory}/sealing.key", **(dict(zip(("tls.pem", "tls.key"), tls, strict=True)) if tls else {})}
    flags = "--key-file %d/sealing.key" + (" --tls-cert %d/tls.pem --tls-key %d/tls.key" if tls else "")
    return _UNIT.format(
        directory=directory,
        user=f"User={user}" if user else "DynamicUser=true",
        credentials="\n".join(f"LoadCredential={name}:{path}" for name, path in handed.items()),
        program=Path(sys.executable).with_name("florin"),
        arguments=f"{arguments} {flags}",
    )


def next_steps(directory: Path, arguments: str) -> str:
    """The commands to run next. `arguments` are those of `florin serve`."""
    place = shlex.quote(str(directory))
    return f"""
Next, with ADMIN_URL an administrator's address of the database:

    psql "$ADMIN_URL" -f {place}/roles.sql && rm {place}/roles.sql
    florin --settings {place}/owner.env migrate
    florin --settings {place}/florin.env serve {arguments}
    # or, with the same arguments: systemctl link {place}/florin.service && systemctl start florin

Then an operator, an account at a PSP and a merchant, each of which asks for its secrets or shows them once:

    florin --settings {place}/operator.env operator add ada --role admin
    florin --settings {place}/operator.env operator login ada
    florin --settings {place}/operator.env psp add stripe --mode live --name "Stripe"
    florin --settings {place}/operator.env merchant add "Corner shop" --mode live --return-hosts shop.example
    florin --settings {place}/operator.env psp route mer_… --default acct_…

Keep a copy of {place}/sealing.key apart from the database's backups."""
