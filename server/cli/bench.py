"""`florin bench`: the load laboratory, which needs extra packages."""

import typer

from bench import INSTALL
from core.errors import FlorinError

OPTIONS = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}
"""The laboratory parses its own options, including `--help`."""


def command(context: typer.Context) -> None:
    """Measure a Florin under load, alone or beside its peers: see `florin bench --help`."""
    try:
        from bench.__main__ import main as laboratory
    except ModuleNotFoundError as error:
        raise FlorinError(f"the laboratory needs {error.name}: {INSTALL}") from error
    laboratory(context.args)
