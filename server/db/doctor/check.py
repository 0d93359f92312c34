"""What a check of the doctor is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One way to break a promise: `sql` selects what breaks it, `promise` is its number in the design, section 1."""

    promise: int
    name: str
    sql: str
