"""Files that only their owner can read, present completely or not at all, whenever the process is killed."""

import os
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Write a file, replacing an existing one."""
    unfinished = _written(path, content)
    unfinished.replace(path)
    _sync(path.parent)


def create_private(path: Path, content: bytes) -> bool:
    """Write a file unless it exists. Returns whether it was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return False
    unfinished = _written(path, content)
    try:
        path.hardlink_to(unfinished)
    except FileExistsError:
        return False
    finally:
        unfinished.unlink()
    _sync(path.parent)
    return True


def _written(path: Path, content: bytes) -> Path:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return unfinished


def _sync(directory: Path) -> None:
    """A new name is durable only once its directory is synced."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
