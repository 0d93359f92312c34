"""Commands with subcommands. Help is plain text that fits a terminal of 80 columns, with names and summaries whole."""

from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter


class Group(TyperGroup):
    """A command with subcommands, whose help shows the whole summary of each."""

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """List the subcommands; a summary that is too long goes on below."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, (one.help or "").partition("\n\n")[0].replace("\n", " ")) for name, one in commands if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def group(summary: str) -> typer.Typer:
    """A command with subcommands."""
    return typer.Typer(help=summary, cls=Group, no_args_is_help=True, rich_markup_mode=None)
