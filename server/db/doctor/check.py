"""The promises by name, and the form of a doctor's check."""

from dataclasses import dataclass
from enum import StrEnum


class Promise(StrEnum):
    """The promises of Florin, in the order of `server/README.md`, which explains them."""

    MONEY_CONSERVED = "money-conserved"
    ONE_EFFECT = "one-effect"
    DURABLE_REPLY = "durable-reply"
    UNKNOWN_NOT_DECLINED = "unknown-not-declined"
    ONE_TRANSITION = "one-transition"
    EVERY_EVENT = "every-event"
    BOUNDED = "bounded"
    NO_CARD_DATA = "no-card-data"


@dataclass(frozen=True, slots=True)
class Check:
    """One way to break a promise: `sql` selects the offending rows."""

    promise: Promise
    name: str
    sql: str
