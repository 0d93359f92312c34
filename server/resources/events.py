"""Events, consumers and tickets for the stream, as merchants see them."""

from typing import Any

import msgspec

from server.resources.times import Time


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event. `seq` numbers a merchant's events without a gap; `id` identifies repetitions; `data` is the object as it was."""

    id: str
    type: str
    seq: int
    api_version: str
    timestamp: Time
    data: dict[str, Any]


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """A named reader of events. Everything up to `acked_seq` has been handled."""

    name: str
    acked_seq: int
    created_at: Time
    updated_at: Time


class StreamTicket(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket that opens the stream once, from pages of `origin`."""

    ticket: str
    url: str
    expires_at: Time


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events in order. Continue with `after=seq`. `recovered`: they follow your position without a gap."""

    data: list[Event]
    seq: int
    has_more: bool
    recovered: bool
    epoch: str
