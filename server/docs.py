"""Writes the generated parts of the documents: `python -m server.docs`.

The state diagrams come from the two tables of transitions, and the table of roles from that of rights, so they cannot disagree
with the code; a test compares what is committed with what this makes.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from core import refund_transition, transition
from core.operators import ACTS, OperatorRole, may

S = TypeVar("S", bound=StrEnum)
K = TypeVar("K", bound=StrEnum)
ARCHITECTURE = Path(__file__).parent / "README.md"
OPERATING = Path(__file__).parent.parent / "deploy" / "README.md"


def parts() -> dict[Path, dict[str, str]]:
    """The generated parts of each document by the names of their markers, as Markdown."""
    return {
        ARCHITECTURE: {
            "payment states": _diagram("PENDING", transition.TRANSITIONS),
            "refund states": _diagram("PENDING", refund_transition.REFUND_TRANSITIONS),
        },
        OPERATING: {"roles": _roles()},
    }


def rendered(document: Path) -> str:
    """The document with its generated parts replaced. Raises ValueError if a marker is missing."""
    text = document.read_text()
    for name, part in parts()[document].items():
        begin, end = f"<!-- {name}: python -m server.docs -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{document} has no {begin.strip()} … {end}")
        text = f"{before}{begin}\n{part}\n{end}{after}"
    return text


def _roles() -> str:
    """The table of acts and roles."""
    lines = [f"| | {' | '.join(OperatorRole)} |", f"| --- |{' --- |' * len(OperatorRole)}"]
    for act in ACTS:
        command = "florin " + act.replace("psp_event", "psp events").replace("dead_letters", "dlq").replace(".", " ")
        cells = " | ".join("✓" if may(role, act) else "" for role in OperatorRole)
        lines.append(f"| `{command}` | {cells} |")
    return "\n".join([*lines, ""])


def _diagram(start: str, transitions: Mapping[S, Mapping[K, S]]) -> str:
    """A state diagram in Mermaid. Evidence that leaves the status as it is has no arrow."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {start}"]
    for status, targets in transitions.items():
        kinds: dict[S, list[str]] = {}
        for kind, target in targets.items():
            if target is not status:
                kinds.setdefault(target, []).append(kind.value)
        lines += [f"    {status.value} --> {target.value}: {', '.join(names)}" for target, names in kinds.items()]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    for path in parts():
        path.write_text(rendered(path))
