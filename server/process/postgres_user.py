"""The user as whom the embedded PostgreSQL runs if Florin runs as root.

PostgreSQL refuses to run as root. As `nobody` it would share its rights with any other program that runs so, which could read its
files and signal it; so it gets a user of its own, by a free number. Nothing is added to the system.
"""

import grp
import os
import pwd
import subprocess
import zlib
from contextlib import suppress
from pathlib import Path

from core.errors import FlorinError
from server import child_process

OWN_UIDS = range(61_184, 65_520)
"""Numbers that no system gives to people or packages; systemd takes users for a while from them too."""


class EmbeddedPostgresError(FlorinError):
    """The embedded PostgreSQL could not be set up or started; the text says what to do."""

    code = "embedded_postgres_failed"


def own_user(data_directory: Path) -> child_process.User | None:
    """The user to run as, because PostgreSQL refuses to run as root: one of its own, by a number that nobody else has.

    It is the owner of an existing data directory, unless that is `nobody`, as whom any program may run.
    """
    if os.geteuid() != 0:
        return None
    cluster = data_directory / "postgres"
    if cluster.exists():
        owner = cluster.stat()
        if owner.st_uid not in (0, nobody().uid):
            return child_process.User(owner.st_uid, owner.st_gid)
    taken = {one.pw_uid for one in pwd.getpwall()} | {one.gr_gid for one in grp.getgrall()} | _uids_of_processes()
    first = zlib.crc32(os.fsencode(data_directory.absolute())) % len(OWN_UIDS)  # so that two directories seldom share one
    uid = next(one for one in [*OWN_UIDS[first:], *OWN_UIDS[:first]] if one not in taken)
    return child_process.User(uid, uid)


def _uids_of_processes() -> set[int]:
    """The users of all processes: those by number alone are in no list."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.add(directory.stat().st_uid)
    return found


def nobody() -> child_process.User:
    """The user as whom a new data directory is initialized, because initdb wants one with a name. Raises
    `EmbeddedPostgresError`.
    """
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedPostgresError(
            "PostgreSQL does not run as root and there is no user `nobody`: run as a plain user, or use --database-url"
        ) from None
    return child_process.User(nobody.pw_uid, nobody.pw_gid)


def give(directory: Path, user: child_process.User) -> None:
    """Make a user the owner of a directory and of everything in it."""
    for parent, _, files in os.walk(directory):
        os.chown(parent, user.uid, user.gid)
        for name in files:
            os.chown(Path(parent) / name, user.uid, user.gid, follow_symlinks=False)


def can(user: child_process.User, command: list[str]) -> bool:
    """Return whether the user can run the command."""
    try:
        done = subprocess.run(  # noqa: S603 - our own commands
            command,
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
