"""The texts of the files that `florin init` makes, and of what to do next."""

import sys
from collections.abc import Mapping
from pathlib import Path

from server.db.roles import Role

_ROLES_BY_LOGIN = {
    "florin_owner": tuple(Role),
    "florin_worker": (Role.APP,),
    "florin_operator": (Role.CONSOLE, Role.READ),
}

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


def roles(passwords: Mapping[str, str]) -> str:
    """The SQL that makes Florin's roles and logins, for an administrator of the database. It can be run again."""
    lines = [
        "-- Made by `florin init`: Florin's roles and their logins. Run it as an administrator, in the database itself.",
        "-- It contains passwords: remove it afterwards.",
        "",
        *(_created(role, "NOLOGIN") for role in Role),
        "",
    ]
    for login, password in passwords.items():
        lines += [
            _created(login, "LOGIN"),
            f"ALTER ROLE {login} LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB PASSWORD '{password}';",
            f"GRANT {', '.join(_ROLES_BY_LOGIN[login])} TO {login};",
        ]
    return "\n".join([*lines, "", f"GRANT USAGE, CREATE ON SCHEMA public TO {Role.MIGRATE};", ""])


def _created(role: str, options: str) -> str:
    is_missing = f"NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}')"
    return f"DO $$ BEGIN IF {is_missing} THEN CREATE ROLE {role} {options}; END IF; END $$;"


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


def next_steps(directory: Path) -> str:
    """The commands to run next."""
    return f"""
Next, with ADMIN_URL an administrator's address of the database:

    psql "$ADMIN_URL" -f {directory}/roles.sql && rm {directory}/roles.sql
    florin --settings {directory}/owner.env migrate
    florin --settings {directory}/florin.env serve         # or: systemctl link {directory}/florin.service

Then an account at a PSP and a merchant, each of which asks for its secrets or shows them once:

    florin --settings {directory}/operator.env psp add stripe --mode live --name "Stripe"
    florin --settings {directory}/operator.env merchant add "Corner shop" --mode live --return-hosts shop.example

Keep a copy of {directory}/sealing.key apart from the database's backups."""
