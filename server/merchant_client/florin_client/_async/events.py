"""Events in order, consumers that remember a position, and tickets for browsers."""

import time
from collections.abc import AsyncGenerator, Sequence
from types import NoneType

from florin_client._async.pages import whole
from florin_client._async.transport import AsyncTransport
from florin_client._cursor import EventCursor
from florin_client._requests import RETRY_SECONDS_MAX, Request, segment, without_none
from florin_client.errors import FlorinUnavailable
from florin_client.resources import Consumer, Event, StreamTicket

PAUSE_SECONDS = 1.0


class AsyncEvents:
    """`/v1/events` and `/v1/stream/tickets`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def get(self, seq: int) -> Event:
        """Return an event by its number."""
        return await self._transport.call(Request("GET", f"/v1/events/{seq}", Event))

    async def stream(
        self, *, after_seq: int | None = None, consumer: str | None = None, event_types: Sequence[str] = ()
    ) -> AsyncGenerator[Event, None]:
        """Yield events in order, for ever: from the first one, after `after_seq`, or from a consumer's position.

        The events of a named consumer are acknowledged, a page of up to 100 at a time, when the next ones are asked for, so each
        is handled at least once. Once a page has come, a Florin that is away is waited for. Close the generator
        (`contextlib.aclosing`) if you leave it early. Raises `Gap`; a new `stream` continues at its `seq`.
        """
        cursor = EventCursor(after_seq, consumer, event_types)
        acknowledged, failures = 0, -1
        while True:
            began = time.monotonic()
            try:
                page = await self._transport.call(cursor.request())
            except FlorinUnavailable:
                if failures < 0:
                    raise  # it has never been there
                failures += 1
                await self._transport.sleep(min(2.0**failures, RETRY_SECONDS_MAX))
                continue
            failures = 0
            for event in cursor.advance(page):
                yield event
            if consumer is not None and page.seq > acknowledged:
                await AsyncConsumers(self._transport).acknowledge(consumer, page.seq)
                acknowledged = page.seq
            if not page.data and time.monotonic() - began < PAUSE_SECONDS:
                await self._transport.sleep(PAUSE_SECONDS)  # the server had no room for another reader that waits

    async def create_ticket(self, *, origin: str, event_types: Sequence[str] = (), consumer: str | None = None) -> StreamTicket:
        """Return a ticket that opens the websocket stream once, within 30 seconds, from pages of `origin`."""
        body = {"origin": origin, "event_types": list(event_types), **without_none(consumer=consumer)}
        return await self._transport.call(Request("POST", "/v1/stream/tickets", StreamTicket, body))


class AsyncConsumers:
    """`/v1/consumers`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> tuple[Consumer, ...]:
        """Return all consumers."""
        return await whole(self._transport, "/v1/consumers", Consumer)

    async def acknowledge(self, name: str, seq: int) -> Consumer:
        """Set the position of a consumer: everything up to `seq` has been handled."""
        return await self._transport.call(Request("PUT", f"/v1/consumers/{segment(name)}", Consumer, {"acked_seq": seq}))

    async def delete(self, name: str) -> None:
        """Forget a consumer."""
        await self._transport.call(Request("DELETE", f"/v1/consumers/{segment(name)}", NoneType))
