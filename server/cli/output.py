"""The output of commands. Texts of others, such as order ids and names, are shown as they are and cannot do anything.

Nothing in a text is taken for markup or an emoji. Control characters and those that change the direction of writing are escaped:
a terminal would obey them (CWE-150; Unicode, UAX 9). On a terminal a table wraps what is too long; elsewhere a row is one whole
line, for programs to read.
"""

import os
import re
import sys
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

PIPE_WIDTH = 10_000
_DIRECTIONS = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(rf"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff{_DIRECTIONS}]")
_UNSAFE_OR_BREAK = re.compile(rf"{_UNSAFE.pattern}|\n")


def shown(text: object) -> str:
    """A text of others as part of a line: what a terminal would obey is escaped as in a Python string, line breaks too."""
    return _UNSAFE_OR_BREAK.sub(_escaped, str(text))


def lines_shown(text: str) -> str:
    """Whole lines, of which the line breaks are ours."""
    return _UNSAFE.sub(_escaped, text)


def json_shown(document: str) -> str:
    """A JSON document of one line that means the same, in which what a terminal would obey is escaped."""
    return _UNSAFE_OR_BREAK.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


class Output(Console):
    """Standard output, or standard error. If its reader leaves, as `head` does, the command ends.

    `goes_on_unread`: it goes on and prints nothing more, because its exit code tells the result.
    """

    def __init__(self, *, stderr: bool = False, goes_on_unread: bool = False) -> None:
        self._goes_on_unread = goes_on_unread
        stream = sys.stderr if stderr else sys.stdout
        width = None if stream.isatty() else PIPE_WIDTH
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, or tables. A text may have line breaks of its own; what it contains of others went through `shown`."""
        super().print(*(lines_shown(one) if isinstance(one, str) else one for one in objects), **options)

    def heading(self, text: str) -> None:
        """Print a heading: a rule across a terminal, else a line."""
        if self.is_terminal:
            self.rule(text, align="left", style="none")
        else:
            self.print(f"─ {text}")

    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on, or end."""
        if not self._goes_on_unread:
            super().on_broken_pipe()
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Rows(Table):
    """A table of texts. The headings may be left out."""

    def __init__(self, *headings: str) -> None:
        columns = [Column(one, overflow="fold") for one in headings]
        super().__init__(*columns, box=None, pad_edge=False, show_header=bool(headings))

    def add(self, *cells: object) -> None:
        """Add a row."""
        self.add_row(*(Text(shown(one)) for one in cells))
        for column in self.columns:
            column.overflow = "fold"
