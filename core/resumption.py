"""Decides where a reader of events continues, and whether it has missed any.

A merchant's events are numbered 1, 2, 3, ... without a gap, in the order of their commits. A reader remembers the number of the
last event that it has handled. `recovered` is true only if every later event is still available from there; otherwise the reader
has to read the current state from the API.
"""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A merchant's sequence: the events from `first_seq` to `last_seq` are kept; `last_seq` is 0 if there are none.

    `epoch` changes when the numbers start to mean other events, as after a restore from a backup.
    """

    epoch: UUID
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Resumption:
    """The position from which a reader continues: it gets the events after `after_seq`. `recovered`: it has missed none before
    them.
    """

    after_seq: int
    recovered: bool


def resume(sequence: Sequence, *, after_seq: int | None, epoch: UUID | None = None) -> Resumption:
    """Decide where to continue. A reader without a position begins with the events from now on."""
    if after_seq is None or after_seq > sequence.last_seq or (epoch is not None and epoch != sequence.epoch):
        return Resumption(sequence.last_seq, recovered=False)
    if after_seq < sequence.first_seq - 1:
        return Resumption(sequence.first_seq - 1, recovered=False)
    return Resumption(after_seq, recovered=True)
