"""Writes the generated parts of `server/README.md`: `python -m server.docs`.

The state diagrams come from the two tables of transitions, so they cannot disagree with the code; a test compares what is
committed with what this makes.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from core import refund_transition, transition

S = TypeVar("S", bound=StrEnum)
K = TypeVar("K", bound=StrEnum)
README = Path(__file__).parent / "README.md"


def diagrams() -> dict[str, str]:
    """The generated parts by the names of their markers, as Markdown."""
    return {
        "payment states": _diagram("PENDING", transition.TRANSITIONS),
        "refund states": _diagram("PENDING", refund_transition.REFUND_TRANSITIONS),
    }


def rendered(text: str) -> str:
    """The document with its generated parts replaced. Raises ValueError if a marker is missing."""
    for name, diagram in diagrams().items():
        begin, end = f"<!-- {name}: python -m server.docs -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{README} has no {begin.strip()} … {end}")
        text = f"{before}{begin}\n{diagram}\n{end}{after}"
    return text


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
    README.write_text(rendered(README.read_text()))
