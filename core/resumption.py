"""Where a reader of a merchant's events goes on, and whether that is without a gap.

A merchant's events are numbered 1, 2, 3, ... without a gap, in the order of their commits. A reader remembers the number of the
last event that it has dealt with. `recovered` is promised only where every later event follows from there; whoever is told
otherwise has to read the state of things from the API.
"""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A merchant's sequence as it stands: events `first_seq` to `last_seq` are kept; `last_seq` is 0 where there are none.

    `epoch` changes where the numbers begin to mean other events, as after a restore from a backup.
    """

    epoch: UUID
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Resumption:
    """What is sent is what follows `after_seq`. `recovered`: from where the reader was, without a gap."""

    after_seq: int
    recovered: bool


def resume(sequence: Sequence, *, after_seq: int | None, epoch: UUID | None = None) -> Resumption:
    """Where to go on. Without a position a reader begins with what happens from now on."""
    if after_seq is None or after_seq > sequence.last_seq or (epoch is not None and epoch != sequence.epoch):
        return Resumption(sequence.last_seq, recovered=False)
    if after_seq < sequence.first_seq - 1:
        return Resumption(sequence.first_seq - 1, recovered=False)
    return Resumption(after_seq, recovered=True)
