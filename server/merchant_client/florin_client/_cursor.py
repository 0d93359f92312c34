"""The position of a reader of events, without any I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from florin_client._requests import PAGE_LIMIT, Request, with_query
from florin_client.errors import Gap
from florin_client.resources import Event

LONG_POLL_SECONDS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """A page of events. `recovered`: they follow the previous ones without a gap."""

    data: list[Event]
    seq: int
    has_more: bool
    recovered: bool
    epoch: str


@dataclass(slots=True)
class EventCursor:
    """A position. Raises TypeError if `event_types` is one text instead of several."""

    after_seq: int | None
    consumer: str | None
    event_types: Sequence[str]
    epoch: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.event_types, str):
            raise TypeError('event_types is a sequence of names, like ("payment.*",)')

    def request(self) -> Request[EventPage]:
        """The request for the events after the position, which the server answers as soon as there is one."""
        query = {
            "wait": LONG_POLL_SECONDS,
            "limit": PAGE_LIMIT,
            "after": self.after_seq,
            "consumer": self.consumer,
            "epoch": self.epoch,
            "types": ",".join(self.event_types) or None,
        }
        return Request("GET", with_query("/v1/events", query), EventPage)

    def advance(self, page: EventPage) -> list[Event]:
        """Move past a page and return its events. Raises `Gap` if events before it are missing; the page is then read again."""
        had_position = self.after_seq is not None or self.epoch is not None or self.consumer is not None
        before, self.after_seq, self.epoch = self.after_seq, page.seq, page.epoch
        if had_position and not page.recovered:
            self.after_seq = page.data[0].seq - 1 if page.data else page.seq
            raise Gap(before, self.after_seq)
        return page.data
