"""`florin key`: the key that seals secrets at rest."""

from pathlib import Path
from typing import Annotated

import typer

from core.errors import Conflict
from server.cli.groups import group
from server.cli.output import Output, shown
from server.sealing import create_key_file

app = group("Make the key that seals secrets at rest.")
_console = Output()


@app.callback()
def only() -> None:
    """Make the key that seals secrets at rest."""


@app.command("new")
def new(file: Annotated[Path, typer.Argument(help="The file to make, readable by its owner only.", metavar="FILE")]) -> None:
    """Make a new sealing key: 32 random bytes in base64. An existing file is never replaced."""
    make_key(file)
    _console.print(f"made {shown(file)}: give it to every worker by --key-file or FLORIN_KEY_FILE")
    _console.print("Keep a copy apart from the database's backups: without it no secret in the database can be opened.")


def make_key(file: Path) -> None:
    """Make a sealing key. Raises `Conflict` if the file exists."""
    if not create_key_file(file):
        raise Conflict(f"{file} exists, and secrets may be sealed with it: choose another name")
