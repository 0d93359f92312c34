"""The instances that run on this machine, for commands that look for one.

An instance describes itself in `running.json` in its data directory, if it has one, and by a file of its own in the user's
runtime directory (XDG Base Directory Specification), as long as it runs. Both contain passwords, and are readable by their owner
only.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from core.errors import FlorinError
from server.atomic_files import write_private
from server.settings import runtime_directories

INSTANCES_MAX = 100


class Running(msgspec.Struct, frozen=True):
    """The addresses of a running instance. Without sandbox and demo (`florin serve`) it has no `psp_url`, `shop_url` and data
    directory.
    """

    pid: int
    api_urls: list[str]
    psp_url: str
    shop_url: str
    database_url: str
    key_file: str
    data_directory: str = ""

    @property
    def is_alive(self) -> bool:
        """Return whether its process still runs."""
        return Path(f"/proc/{self.pid}").exists()

    @property
    def name(self) -> str:
        """The instance in a few words, for a choice."""
        return f"{', '.join(self.api_urls)}, {self.data_directory or 'florin serve'} (pid {self.pid})"


def running_file(data_directory: Path) -> Path:
    """The file in a data directory that describes its running instance."""
    return data_directory / "running.json"


@contextmanager
def announced(running: Running) -> Iterator[None]:
    """A block in which commands find the instance. One that cannot be announced runs all the same."""
    files = [running_file(Path(running.data_directory))] if running.data_directory else []
    directory = _own_directory()
    if directory is not None:
        files.append(directory / f"{running.pid}.json")
    document = msgspec.json.encode(running)
    for file in files:
        write_private(file, document)
    try:
        yield
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def read_running(file: Path) -> Running | None:
    """The instance that a file describes, running or not, or None if the file is missing or none of ours."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None


def running_instances() -> list[Running]:
    """The instances of this user that run, wherever their data is."""
    directory = _own_directory()
    found = []
    for file in sorted(directory.glob("*.json"))[:INSTANCES_MAX] if directory is not None else ():
        running = read_running(file)
        if running is not None and running.is_alive:
            found.append(running)
        else:
            file.unlink(missing_ok=True)  # its process was killed
    return found


def _own_directory() -> Path | None:
    """Florin's directory in the runtime directory of this user, private to them; None if there is no such place."""
    uid = os.getuid()
    for directory in runtime_directories():
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077:
            return directory
    return None


class NoRunningInstance(FlorinError):
    """The command needs a running instance or an address."""

    code = "nothing_runs"
