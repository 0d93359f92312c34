"""The promises by name, and the form of a doctor's check."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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
    """One way to break a promise: `sql` selects the offending rows, or rows of which `offends` picks them.

    `shown` are the columns to show, if not all may be. `of_payments`: it judges payments one by one, so it can be made for the
    recent ones alone.
    """

    promise: Promise
    name: str
    sql: str
    offends: Callable[[tuple[Any, ...]], bool] | None = None
    shown: tuple[str, ...] | None = None
    of_payments: bool = False
