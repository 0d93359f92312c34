"""`--since`: how far back a command looks."""

import re
from datetime import timedelta
from typing import Annotated

import typer

from core.errors import Unprocessable

Since = Annotated[str | None, typer.Option("--since", help="Only what is not older than that, like 30m, 24h or 7d.")]
_AGE = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_since(text: str | None) -> timedelta | None:
    """The age. Raises `Unprocessable`."""
    if text is None:
        return None
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise Unprocessable(f"--since {text!r}: write it like 30m, 24h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
