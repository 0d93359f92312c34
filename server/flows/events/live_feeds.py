"""Live events for readers in this worker: each merchant's sequence, passed on in order and without a hole.

A feed exists for a merchant as long as somebody reads it here. It learns of events from this worker's own commits (`publish`),
and of the existence of others from hints (`hint`: another worker's NOTIFY, or the poll that is the guarantee); what lies between
what it knows and what it hears of is read from the table. Invariants:

- A feed passes on each event once, by its number, after its commit.
- A reader that has caught up with `Feed.last_seq` and joins without waiting in between misses nothing and gets nothing twice.
- Every feed has a task of its own, so that one merchant's readers hold up nobody else's; nothing waits for a slow reader.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog
import trio

from core.errors import Overloaded
from core.events import is_wanted
from core.ids import MerchantId
from server.db.events.events import Event, find_epoch, find_last_seqs, list_events
from server.db.pool import Pool
from server.flows.events.envelope import encode_event
from server.http.asgi import Send
from server.http.websocket.frame import FRAME_EXTENSION, Frame

EARLY_MAX = 1_024
ANNOUNCED_MAX = 100_000
"""How many events that came before their turn are kept; others are read from the table."""

PAGE_EVENTS = 200
SENT_AT_ONCE_MAX = 256
"""To how many readers an event is sent before others have a turn."""

RETRY_SECONDS = 0.5
FEEDS_MAX = 20_000
SEQ_MAX = 2**63 - 1
_log = structlog.get_logger()


class Reader:
    """A live reader. `send` takes a frame (`server.http.websocket.frame`), never waits for the peer, and raises OSError where
    it has left; `types` None: all.

    `end` tells it to come back, because its numbers mean other events now.
    """

    __slots__ = ("end", "send", "types")

    def __init__(self, send: Send, end: Callable[[], None], *, types: tuple[str, ...] | None) -> None:
        self.send = send
        self.end = end
        self.types = types


class Feed:
    """One merchant's events, live. `last_seq`: the last one that was passed on."""

    def __init__(self, pool: Pool, merchant_id: MerchantId, last_seq: int) -> None:
        self._pool = pool
        self.merchant_id = merchant_id
        self.last_seq = last_seq
        self.users = 0
        self.is_void = False
        self.scope = trio.CancelScope()
        self._known_seq = last_seq
        self._early: dict[int, Event] = {}
        self._readers: dict[Reader, None] = {}
        self._news = trio.Event()
        self._passed_on = trio.Event()

    def join(self, reader: Reader) -> None:
        """Send it what follows `last_seq`."""
        self._readers[reader] = None

    def leave(self, reader: Reader) -> None:
        """Send it nothing more."""
        self._readers.pop(reader, None)

    def end(self) -> None:
        """What this feed knows is void: its readers have to begin anew."""
        self.is_void = True
        self._passed_on.set()
        for reader in list(self._readers):
            reader.end()

    async def until_after(self, seq: int) -> None:
        """Wait until a later event than that was passed on."""
        await trio.lowlevel.checkpoint()
        while self.last_seq <= seq and not self.is_void:
            await self._passed_on.wait()

    def hear(self, seq: int, event: Event | None = None) -> None:
        """Events up to this number were committed; this is the last of them, if it is at hand."""
        if seq <= self.last_seq:
            return
        if event is not None and len(self._early) < EARLY_MAX:
            self._early[seq] = event
        self._known_seq = max(self._known_seq, seq)
        self._news.set()

    async def run(self) -> None:
        """Pass events on until nobody reads."""
        with self.scope:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                try:
                    while self.last_seq < self._known_seq:
                        await self._pass_on_next()
                except Exception as error:  # noqa: BLE001 - one merchant's feed must not end the worker
                    _log.warning("cannot pass events on", error=f"{type(error).__name__}: {error}")
                    await trio.sleep(RETRY_SECONDS)
                    self._news.set()

    async def _pass_on_next(self) -> None:
        event = self._early.pop(self.last_seq + 1, None)
        if event is not None:
            await self._pass_on(event)
            return
        known_seq = self._known_seq
        async with self._pool.connection() as connection:
            found = await list_events(connection, self.merchant_id, after_seq=self.last_seq, limit=PAGE_EVENTS)
        if not found and self._known_seq == known_seq:  # a hint that was wrong; the next one, or the poll, will be right
            self._known_seq = self.last_seq
        for one in found:
            self._early.pop(one.seq, None)
            await self._pass_on(one)

    async def _pass_on(self, event: Event) -> None:
        message = {"type": FRAME_EXTENSION, "frame": Frame.of(encode_event(event).decode()).encoded} if self._readers else {}
        self.last_seq = event.seq
        passed_on, self._passed_on = self._passed_on, trio.Event()
        passed_on.set()
        if not self._readers:
            return
        for number, reader in enumerate(list(self._readers), start=1):
            types = reader.types
            if reader in self._readers and (types is None or is_wanted(event.type, types)):
                try:
                    await reader.send(message)
                except Exception:  # noqa: BLE001 - it has left, or fails: nobody else's concern
                    self.leave(reader)
                    reader.end()
            if number % SENT_AT_ONCE_MAX == 0:
                await trio.lowlevel.checkpoint()


class Feeds:
    """The feeds of one worker. `run` owns their tasks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._feeds: dict[MerchantId, Feed] = {}
        self._nursery: trio.Nursery | None = None
        self._epoch: UUID | None = None
        self.announced: dict[MerchantId, int] = {}
        """What other workers have not been told of yet: the last number by merchant."""
        self.has_news = trio.Event()

    @property
    def merchant_ids(self) -> list[MerchantId]:
        """Whose events are read here."""
        return list(self._feeds)

    def readers_of(self, merchant_id: MerchantId) -> int:
        """How many read a merchant's events here."""
        feed = self._feeds.get(merchant_id)
        return len(feed._readers) if feed is not None else 0

    def publish(self, event: Event) -> None:
        """This worker has committed an event. Never waits."""
        feed = self._feeds.get(event.merchant_id)
        if feed is not None:
            feed.hear(event.seq, event)
        is_room = len(self.announced) < ANNOUNCED_MAX or event.merchant_id in self.announced
        if is_room and event.seq > self.announced.get(event.merchant_id, 0):
            self.announced[event.merchant_id] = event.seq
            self.has_news.set()

    def hint(self, merchant_id: MerchantId, seq: int) -> None:
        """Events up to this number exist."""
        feed = self._feeds.get(merchant_id)
        if feed is not None and seq <= SEQ_MAX:
            feed.hear(seq)

    async def poll(self, merchant_ids: list[MerchantId]) -> None:
        """Look at the sequences themselves: whatever hint was lost, this finds it. Raises `DatabaseUnavailable`, `Overloaded`."""
        passed_on = {one: feed.last_seq for one in merchant_ids if (feed := self._feeds.get(one)) is not None}
        async with self._pool.connection() as connection:
            found = await find_last_seqs(connection, merchant_ids)
        for merchant_id, seq in found.items():
            feed = self._feeds.get(merchant_id)
            if feed is not None and seq < passed_on.get(merchant_id, 0):  # what was passed on before is not there any more
                self._void(feed)
            self.hint(merchant_id, seq)

    async def check_epoch(self) -> None:
        """After a restore every number may mean another event: whoever reads here begins anew."""
        async with self._pool.connection() as connection:
            epoch = await find_epoch(connection)
        if self._epoch not in (None, epoch):
            for feed in list(self._feeds.values()):
                self._void(feed)
        self._epoch = epoch

    def _void(self, feed: Feed) -> None:
        del self._feeds[feed.merchant_id]
        feed.end()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the feeds' tasks until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    @contextmanager
    def reading(self, merchant_id: MerchantId, *, last_seq: int) -> Iterator[Feed]:
        """The merchant's feed, for as long as the block runs; a new one begins at `last_seq`. Raises `Overloaded`."""
        feed = self._feeds.get(merchant_id)
        if feed is None:
            if self._nursery is None or len(self._feeds) >= FEEDS_MAX:
                raise Overloaded("too many merchants' events are read here")
            feed = self._feeds[merchant_id] = Feed(self._pool, merchant_id, last_seq)
            self._nursery.start_soon(feed.run)
        feed.hear(last_seq)
        feed.users += 1
        try:
            yield feed
        finally:
            feed.users -= 1
            if not feed.users:
                if self._feeds.get(merchant_id) is feed:
                    del self._feeds[merchant_id]
                feed.scope.cancel()
