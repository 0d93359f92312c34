"""State that survives a restart: one JSON line per change, of which the last for a key counts.

A change is one write: it is in the file as a whole, or it has not happened. This is enough for a sandbox: it is not synced to
disk, compacted at the start, and bounded in entries.
"""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

ENTRIES_MAX = 200_000


class Journal:
    """A bounded dictionary of JSON objects, kept in a file if one is given."""

    def __init__(self, path: Path | None) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self._file: io.FileIO | None = None
        if path is None:
            return
        if path.exists():
            self._load(path)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps([key, value]) + "\n" for key, value in self.entries.items())
        unfinished.replace(path)
        self._file = path.open("ab", buffering=0)

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Store an entry, dropping the oldest if there are too many. Raises OSError, having stored nothing, if the disk is
        full.
        """
        if self._file is not None:
            self._write(self._file, json.dumps([key, value]).encode() + b"\n")
        if key not in self.entries and len(self.entries) >= ENTRIES_MAX:
            del self.entries[next(iter(self.entries))]
        self.entries[key] = value

    def _write(self, file: io.FileIO, line: bytes) -> None:
        end = file.seek(0, os.SEEK_END)
        written = 0
        try:
            written = file.write(line)
        finally:
            if written != len(line):
                file.truncate(end)  # part of a line would spoil the next one
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _load(self, path: Path) -> None:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    key, value = json.loads(line)
                except (ValueError, TypeError):
                    continue  # the last line of a process that was killed
                if isinstance(key, str) and isinstance(value, dict):
                    self.entries[key] = value
        for key in list(self.entries)[:-ENTRIES_MAX]:
            del self.entries[key]
