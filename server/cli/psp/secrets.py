"""Reads the secrets of PSP accounts without showing them."""

import sys
from pathlib import Path

import typer

from core.errors import Unprocessable


def read_secret(path: Path | None, what: str, *, flag: str, may_be_empty: bool = False, advice: str = "") -> str:
    """A secret from a file, standard input or the keyboard, never from the command line, where others could read it."""
    if path is None:
        if not sys.stdin.isatty():
            if may_be_empty:
                return ""
            raise Unprocessable(f"the {what} cannot be asked for without a terminal: give it in a file, by {flag}")
        text = str(typer.prompt(f"{what}{advice}", hide_input=True, default="" if may_be_empty else None, show_default=False))
    else:
        try:
            text = sys.stdin.read(10_000) if str(path) == "-" else path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unprocessable(f"{path} cannot be read: {error}") from error
    text = text.strip()
    if not (text or may_be_empty) or len(text) > 500 or not text.isprintable() or not text.isascii() or " " in text:
        raise Unprocessable(f"the {what} must be one word of printable ASCII")
    return text
