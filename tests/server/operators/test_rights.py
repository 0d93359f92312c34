"""Every act of an operator is a command that takes one, and every such command is an act."""

from collections.abc import Iterator
from typing import Any

from core.operators import ACTS
from server.cli import COMMANDS, load

NAMES = {"dlq": "dead_letters", "psp.events": "psp_event"}
"""The commands whose acts go by the name of what they are on."""

OTHERS = {"audit", "operator.logout", "psp.route"}
"""They take `--operator` otherwise: to filter, to end a session, and for routes only to change them."""


def commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below one, by their names with dots."""
    below = getattr(command, "commands", None)
    if not below:
        yield path, command
        return
    for name, one in below.items():
        yield from commands(f"{path}.{name}", one)


def test_every_act_is_a_command_and_every_command_that_acts_is_in_the_table() -> None:
    acting = set()
    for name in COMMANDS:
        for path, command in commands(name, load(name)):
            if any("--operator" in one.opts for one in command.params):
                shelf, _, verb = path.rpartition(".")
                acting.add(f"{NAMES[shelf]}.{verb}" if shelf in NAMES else path)
    assert acting - OTHERS == set(ACTS) - OTHERS
    assert acting >= OTHERS
